"""Visual Genome's region descriptions: `region_descriptions.json`, with image sizes and names from `image_data.json`.

A row is a region: a phrase and its box (x, y, width, height in pixels). Images are `<folder>/<file>`, as in their
official URLs, e.g. `VG_100K_2/1.jpg`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.sources.base import Source, batches, named_files
from pipelines.sources.fields import Reject, field, normalised_box, number, show, text
from pipelines.sources.formats import json_stream

_files = named_files("region_descriptions.json", "image_data.json")

Image = tuple[str, float, float]  # reference, width, height in pixels


def _images(path: Path) -> dict[int, Image | Reject]:
    """Returns image_id → its image, or the Reject of a bad entry, which its regions report."""
    images: dict[int, Image | Reject] = {}
    for record in json_stream.array(path):
        try:
            identity = field(record, "image_id", int)
        except Reject:
            continue  # no region can refer to it
        try:
            if identity in images:
                raise Reject("duplicate_id", f"image_id {identity} occurs more than once")
            address = text(record, "url")
            images[identity] = (
                "/".join(address.split("/")[-2:]),
                number(record, "width"),
                number(record, "height"),
            )
        except Reject as reject:
            images[identity] = reject
    return images


def _regions(path: Path) -> Iterator[Any]:
    """Yields every region, and a Reject for each entry of the file without a list of regions."""
    for record in json_stream.array(path):
        try:
            yield from field(record, "regions", list)
        except Reject as reject:
            yield reject


def read(root: Path) -> Iterator[pa.RecordBatch]:
    descriptions, image_data = _files(root)
    images = _images(image_data)

    def row(region: Any) -> tuple[Any, ...]:
        identity = field(region, "image_id", int)
        image = images.get(identity)
        if image is None:
            raise Reject("unmatched_region", f"image_data.json has no image_id {show(identity)}")
        if isinstance(image, Reject):
            raise Reject("bad_image_data", str(image))
        reference, width, height = image
        x, y = number(region, "x"), number(region, "y")
        box = normalised_box(x, y, x + number(region, "width"), y + number(region, "height"), width, height)
        return reference, text(region, "phrase", "empty_phrase"), box, [width, height]

    yield from batches("referring", _regions(descriptions), row)


SOURCE = Source(
    "visual_genome",
    "referring",
    _files,
    read,
    version=2,
    licence="annotations: CC BY 4.0; images from COCO and Flickr: the terms of Flickr and of the photographers apply",
)
