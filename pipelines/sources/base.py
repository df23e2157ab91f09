"""The parts that all sources share: the Source class, field checks that reject bad rows, and rows → Arrow batches.

A reader turns every record into a row or a reject (`Reject`, for one bad row). It raises a `SourceError`, and no other
exception, if a file cannot be read to its end. In docstrings, `Rejects:` lists the reasons of the rejects raised.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from dataclasses import field as field_of
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.core.walk import WalkError, walk
from pipelines.schema import ANNOTATIONS
from pipelines.sources.fields import Reject, T

BATCH_ROWS = 8192
CONVERSATION_ROWS = 1024  # fewer, because one conversation may take tens of kilobytes
FILE = b"file"  # the schema metadata key under which a batch names its file
SKIPPED = b"skipped"  # the one under which the last batch of a source, without rows, holds its `Skips` as JSON
_EXAMPLES = 5  # names that `Skips` keeps for each reason
_COMMON_FIELDS = 4  # row, image, reject, detail
COCO_IMAGES = "images from COCO: the terms of Flickr and of the photographers apply"


class SourceError(ValueError):
    """Raised for an annotation file that is missing or unreadable; the message names file, position and remedy."""


class Skips(Counter[str]):
    """Counts by reason what is not a row and was skipped, such as hidden files and the unanswered ends of
    conversations."""

    def __init__(self) -> None:
        super().__init__()
        self.examples: dict[str, list[str]] = {}

    def note(self, reason: str, name: str = "") -> None:
        self[reason] += 1
        examples = self.examples.setdefault(reason, [])
        if name and len(examples) < _EXAMPLES:
            examples.append(name.encode("utf-8", "backslashreplace").decode())

    def as_json(self) -> dict[str, dict[str, Any]]:
        return {reason: {"count": n, "examples": self.examples[reason]} for reason, n in sorted(self.items())}


class Files(list[Path]):
    """The files of a source. skipped: what was found next to them and is not read."""

    def __init__(self, paths: Iterable[Path], hidden: Iterable[str] = (), repeated: Iterable[str] = ()):
        super().__init__(paths)
        self.skipped = [*(("hidden_file", name) for name in hidden), *(("repeated_link", name) for name in repeated)]


@dataclass(frozen=True)
class Source:
    """The reader of one dataset's official files.

    licence: what is known for certain about the dataset's licence; dataset cards show it.
    files: annotations root → the required files; raises SourceError that names a missing one.
    read: annotations root → batches of at most 8,192 rows, schema `ANNOTATIONS[task]`, one row per official row.
        If a source has several files, each batch names its file in its schema metadata (see `file_batches`).
    """

    name: str
    task: str
    files: Callable[[Path], list[Path]]
    read: Callable[[Path], Iterator[pa.RecordBatch]]
    version: int = 1  # part of the fingerprint: increment it when the reader's rows change
    options: Mapping[str, Any] = field_of(default_factory=dict)  # the recipe's, as JSON; part of the fingerprint too
    licence: str = "see the dataset's own page"


def named_files(*names: str) -> Callable[[Path], list[Path]]:
    """Returns a `files` function for a dataset whose official file names are fixed."""

    def files(root: Path) -> list[Path]:
        paths = [root / name for name in names]
        for i, path in enumerate(paths):
            if not path.is_file() and (zipped := path.with_name(f"{path.name}.gz")).is_file():
                paths[i] = zipped
            elif not path.is_file():
                raise SourceError(f"{path} is missing: put the official file there, or correct the recipe's path")
        return paths

    return files


def matching_files(root: Path, *patterns: str) -> Files:
    """Returns all files below `root` that match a pattern, sorted by path (see pipelines/core/walk.py). Raises
    SourceError if there are none, a pattern or link is invalid, or a file name is not UTF-8."""
    try:
        found = walk(root, *patterns)
    except WalkError as error:
        raise SourceError(str(error)) from None
    except ValueError as error:
        raise SourceError(f"files: {' or '.join(patterns)} is not a valid glob pattern: {error}") from None
    if not found.files:
        hidden = f"; hidden and not read: {', '.join(found.hidden[:_EXAMPLES])}" if found.hidden else ""
        raise SourceError(
            f"no file matches {' or '.join(patterns)} in {root}: put the dataset's files there, or correct the path in "
            f"the recipe{hidden}"
        )
    for path in found.files:
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raise SourceError(f"{str(path)!r}: the file name is not valid UTF-8: rename it") from None
    return Files(found.files, found.hidden, found.repeated)


def file_batches(
    task: str,
    root: Path,
    files: Iterable[Path],
    records: Callable[[Path], Iterable[T | Reject]],
    parse: Callable[[T], tuple[Any, ...]],
    skips: Skips | None = None,
) -> Iterator[pa.RecordBatch]:
    """Yields the `batches` of one file after the other; row indices continue across files.

    No batch holds rows of two files, and each names its file, relative to `root`, in its schema metadata, so that every
    row can be traced back to its position in a file. If anything was skipped, by `records` and `parse` (into `skips`)
    or in the listing of the files, a last batch without rows tells what.
    """
    skips, first = Skips() if skips is None else skips, 0
    for path in files:
        for batch in batches(task, records(path), parse, first):
            yield batch.replace_schema_metadata({FILE: path.relative_to(root).as_posix()})
            first += batch.num_rows
    for reason, name in files.skipped if isinstance(files, Files) else ():
        skips.note(reason, name)
    if skips:
        metadata = {SKIPPED: json.dumps(skips.as_json())}
        yield pa.RecordBatch.from_pylist([], ANNOTATIONS[task]).replace_schema_metadata(metadata)


def batches(
    task: str, records: Iterable[T | Reject], parse: Callable[[T], tuple[Any, ...]], first: int = 0
) -> Iterator[pa.RecordBatch]:
    """Yields one row per record, in batches, with row indices `first`, `first` + 1, …

    records: may contain Rejects, for rows that were found to be bad before they could be parsed.
    parse: record → (image, *fields of the task), in the schema's order; raises Reject for a bad record.
    """
    schema = ANNOTATIONS[task]
    bad_row = (None,) * (1 + len(schema) - _COMMON_FIELDS)
    batch_rows = CONVERSATION_ROWS if task == "conversation" else BATCH_ROWS
    records = iter(records)
    while True:
        rows: list[tuple[Any, ...]] = []
        rejects: dict[int, Reject] = {}
        for record in islice(records, batch_rows):
            try:
                if isinstance(record, Reject):
                    raise record
                rows.append(parse(record))
            except Reject as reject:
                rejects[len(rows)] = reject
                rows.append(bad_row)
        if not rows:
            return
        yield from _record_batches(schema, rows, rejects, first)
        first += len(rows)


def _record_batches(
    schema: pa.Schema, rows: list[tuple[Any, ...]], rejects: dict[int, Reject], first: int
) -> Iterator[pa.RecordBatch]:
    """Yields one batch, or several if a string column would exceed 2 GiB. rejects: index in `rows` → reject."""
    image, *fields = zip(*rows, strict=True)
    reason: list[str | None] = [None] * len(rows)
    detail: list[str | None] = [None] * len(rows)
    for i, why in rejects.items():
        reason[i], detail[i] = why.reason, why.detail
    columns = [
        pa.array(range(first, first + len(rows)), pa.int64()),
        pa.array(image, pa.string()),
        pa.array(reason, pa.string()),
        pa.array(detail, pa.string()),
        *(pa.array(values, kind) for values, kind in zip(fields, schema.types[_COMMON_FIELDS:], strict=True)),
    ]
    if not any(isinstance(column, pa.ChunkedArray) for column in columns):
        yield pa.RecordBatch.from_arrays(columns, schema=schema)
        return
    half = len(rows) // 2
    yield from _record_batches(schema, rows[:half], {i: why for i, why in rejects.items() if i < half}, first)
    later = {i - half: why for i, why in rejects.items() if i >= half}
    yield from _record_batches(schema, rows[half:], later, first + half)
