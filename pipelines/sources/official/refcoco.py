"""RefCOCO, RefCOCO+ and RefCOCOg in MDETR's layout: `finetune_<name>_train.json`.

A row is an entry of `images`: one expression (`caption`) with its image. Its box (`bbox`: x, y, width, height in
pixels) is in the entry of `annotations` whose `image_id` equals the expression's `id`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.sources.base import COCO_IMAGES, Source, batches, named_files
from pipelines.sources.fields import Reject, field, finite, normalised_box, number, show, text
from pipelines.sources.formats import json_stream
from pipelines.sources.formats.join import join


def _id(expression: Any) -> int:
    return field(expression, "id", int)


def _image_id(annotation: Any) -> int:
    return field(annotation, "image_id", int)


def _corners(annotation: Any) -> tuple[float, float, float, float]:
    bbox = field(annotation, "bbox", list)
    if len(bbox) != 4:
        raise Reject("wrong_type", f"bbox is {show(bbox)}, not four numbers")
    x, y, width, height = (finite("bbox", value) for value in bbox)
    return x, y, x + width, y + height


def _row(pair: tuple[Any, tuple[float, float, float, float]]) -> tuple[Any, ...]:
    expression, corners = pair
    size = number(expression, "width"), number(expression, "height")
    box = normalised_box(*corners, *size)
    return text(expression, "file_name"), text(expression, "caption", "empty_phrase"), box, list(size)


def _source(name: str) -> Source:
    files = named_files(f"finetune_{name}_train.json")

    def read(root: Path) -> Iterator[pa.RecordBatch]:
        """Yields one row per expression, in file order, then a reject per annotation without an expression."""
        (path,) = files(root)
        pairs = join(
            json_stream.array(path, "images"),
            json_stream.array(path, "annotations"),
            _id,
            _image_id,
            _corners,
            names=("expression", "annotation"),
        )
        yield from batches("referring", pairs, _row)

    return Source(name, "referring", files, read, licence=f"annotations: see the dataset's own page; {COCO_IMAGES}")


SOURCES = tuple(_source(name) for name in ("refcoco", "refcoco+", "refcocog"))
