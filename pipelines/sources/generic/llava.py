"""Reads conversations in the layout of LLaVA or other trainers from all JSON and JSON Lines files below a directory.

A row is an object in one of the layouts of formats/chat_layouts.yaml. Its images are in `image` or `images`, a file
name or a list of them; without either, it is text only. Row indices continue across files, sorted by path.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.sources.base import Skips, Source, SourceError, file_batches, matching_files
from pipelines.sources.fields import Reject, clean, show
from pipelines.sources.formats import json_stream
from pipelines.sources.formats.chat_layouts import TABLE, check_file_name, one_of
from pipelines.sources.formats.conversations import place_images, sizes, talk
from pipelines.sources.options import SourceOptions

_PATTERNS = json_stream.patterns("**/*.json", "**/*.jsonl")


def _records(path: Path) -> Iterator[Any]:
    is_lines = path.name.removesuffix(".gz").endswith(".jsonl")
    return json_stream.lines(path) if is_lines else json_stream.records(path)


def _images(record: dict[str, Any]) -> list[str]:
    """Returns the image file names. Rejects: wrong_type, empty_field, not_utf8, two_picture_fields,
    image_address."""
    found: list[str] = []
    for name in TABLE["row"]["images"]:
        value = record.get(name)
        names = value if type(value) is list else [] if value is None else [value]
        if names and found:
            raise Reject("two_picture_fields", f"image is {show(record['image'])}, images is {show(value)}")
        for i, each in enumerate(names):
            found.append(clean(f"{name}[{i}]", each))
            check_file_name(found[-1], f"{name}[{i}]")
    return found


def _row(record: Any, skips: Skips) -> tuple[Any, ...]:
    if type(record) is not dict:
        raise Reject("wrong_type", f"the row is {show(record)}, not an object")
    names = TABLE["row"]["conversations"]
    name = one_of(record, names) or next((name for name in names if name in record), None)
    if name is None:
        raise Reject("missing_field", f"{' or '.join(names)} is missing; the fields are {show(list(record))}")
    return place_images(sizes(record, _images(record)), talk(record, name, skips))


def source(options: SourceOptions) -> Source:
    """Returns the source. options.files: a glob of the files below the root; default: all `*.json` and `*.jsonl`."""
    if options.columns is not None:
        raise SourceError("the source llava takes no `columns`: remove them from the recipe")
    patterns = (options.files,) if options.files else _PATTERNS

    def files(root: Path) -> list[Path]:
        return matching_files(root, *patterns)

    def read(root: Path) -> Iterator[pa.RecordBatch]:
        skips = Skips()

        def row(record: Any) -> tuple[Any, ...]:
            return _row(record, skips)

        yield from file_batches("conversation", root, files(root), _records, row, skips)

    return Source("llava", "conversation", files, read, options=options.as_json())
