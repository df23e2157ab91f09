"""The parts that all sources share: the Source class, field checks that reject bad rows, and rows → Arrow batches.

A reader turns every record into a row or a reject (`Reject`, for one bad row). It raises a `SourceError`, and no other
exception, if a file cannot be read to its end. In docstrings, `Rejects:` lists the reasons of the rejects raised.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from dataclasses import field as field_of
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from pipelines.schema import ANNOTATIONS

BATCH_ROWS = 8192
CONVERSATION_ROWS = 1024  # fewer, because one conversation may take tens of kilobytes
FILE = b"file"  # the schema metadata key under which a batch names its file
_SHOWN = 80  # characters of a bad value that a reject's detail quotes
_COMMON_FIELDS = 4  # row, image, reject, detail

T = TypeVar("T")


COCO_IMAGES = "images from COCO: the terms of Flickr and of the photographers apply"


class SourceError(ValueError):
    """Raised for an annotation file that is missing or unreadable; the message names file, position and remedy."""


class Reject(Exception):
    """Raised for a row that cannot be used. reason: a short stable name; detail: the field and its value."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail.encode("utf-8", "backslashreplace").decode()  # an Arrow string must be valid UTF-8


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
        for path in paths:
            if not path.is_file():
                raise SourceError(f"{path} is missing: put the official file there, or correct the recipe's path")
        return paths

    return files


def matching_files(root: Path, *patterns: str) -> list[Path]:
    """Returns all files below `root` that match a pattern, sorted by path. Raises SourceError if there are none, a
    pattern is invalid, or a file name is not UTF-8."""
    try:
        paths = sorted({path for pattern in patterns for path in root.glob(pattern) if path.is_file()})
    except (ValueError, NotImplementedError) as error:
        raise SourceError(f"files: {' or '.join(patterns)} is not a valid glob pattern: {error}") from None
    if not paths:
        raise SourceError(
            f"no file matches {' or '.join(patterns)} in {root}: put the dataset's files there, or correct the path in "
            "the recipe"
        )
    for path in paths:
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raise SourceError(f"{str(path)!r}: the file name is not valid UTF-8: rename it") from None
    return paths


def file_batches(
    task: str,
    root: Path,
    files: Iterable[Path],
    records: Callable[[Path], Iterable[T | Reject]],
    parse: Callable[[T], tuple[Any, ...]],
) -> Iterator[pa.RecordBatch]:
    """Yields the `batches` of one file after the other; row indices continue across files.

    No batch holds rows of two files, and each names its file, relative to `root`, in its schema metadata, so that every
    row can be traced back to its position in a file.
    """
    first = 0
    for path in files:
        for batch in batches(task, records(path), parse, first):
            yield batch.replace_schema_metadata({FILE: path.relative_to(root).as_posix()})
            first += batch.num_rows


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


def show(value: Any) -> str:
    """Returns `value` for a reject's detail: printable, valid UTF-8 and short."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def field(record: Any, name: str, kind: type[T], where: str = "") -> T:
    """Returns record[name] if its type is exactly `kind` (a bool is not an int). Rejects: missing_field, wrong_type.

    where: the prefix of the name in a reject's detail, for an object inside the row (`conversations[3].`).
    """
    if type(record) is dict and type(value := record.get(name)) is kind:
        return value
    if type(record) is not dict:
        raise Reject("wrong_type", f"{where.rstrip('.') or 'the row'} is {show(record)}, not an object")
    if name not in record:
        raise Reject("missing_field", f"{where}{name} is missing; the fields are {show(list(record))}")
    raise Reject("wrong_type", f"{where}{name} is {show(record[name])}, not {kind.__name__}")


def optional_text(record: Any, name: str) -> str | None:
    """Like `text`, but returns None if the field is absent or null."""
    if type(record) is dict and record.get(name) is None:
        return None
    return text(record, name)


def number(record: Any, name: str) -> float:
    """Returns an int or float between -1e9 and 1e9 as a float. Rejects: missing_field, wrong_type, bad_number."""
    kind = float if type(record) is dict and type(record.get(name)) is float else int
    return finite(name, field(record, name, kind))


def finite(name: str, value: Any) -> float:
    if type(value) is not int and type(value) is not float:
        raise Reject("wrong_type", f"{name} is {show(value)}, not a number")
    if not -1e9 < value < 1e9:  # also false for NaN
        raise Reject("bad_number", f"{name} is {show(value)}")
    return float(value)


def text(record: Any, name: str, empty: str = "empty_field", where: str = "") -> str:
    """Returns record[name] as a stripped, non-empty string. Rejects: missing_field, wrong_type, not_utf8, `empty`."""
    value = field(record, name, str, where)
    if value.isascii() and (stripped := value.strip()):  # fast path for nearly all values, in half the time
        return stripped
    return clean(f"{where}{name}", value, empty)


def clean(name: str, value: Any, empty: str = "empty_field") -> str:
    """Does what `text` does, for a value that is not a field of an object."""
    if type(value) is not str:
        raise Reject("wrong_type", f"{name} is {show(value)}, not str")
    stripped = utf8(name, value).strip()
    if not stripped:
        raise Reject(empty, f"{name} is {show(value)}")
    return stripped


def utf8(name: str, value: str) -> str:
    """Returns `value`. Rejects: not_utf8 for a lone surrogate (an undecodable byte or a broken escape in the file)."""
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise Reject("not_utf8", f"{name} is {show(value)}") from None
    return value


def normalised_box(x1: float, y1: float, x2: float, y2: float, width: float, height: float) -> list[float]:
    """Converts pixel corners to [x1, y1, x2, y2] relative to width and height, clipped to the image.

    Rejects: bad_image_size, box_empty (no area), box_outside_image (no overlap with the image).
    """
    if width <= 0 or height <= 0:
        raise Reject("bad_image_size", f"width {width:g}, height {height:g}")
    if x2 <= x1 or y2 <= y1:
        raise Reject("box_empty", f"box {x1:g}, {y1:g}, {x2:g}, {y2:g} (corners)")
    left, top, right, bottom = max(x1, 0.0), max(y1, 0.0), min(x2, width), min(y2, height)
    if right <= left or bottom <= top:
        raise Reject(
            "box_outside_image", f"box {x1:g}, {y1:g}, {x2:g}, {y2:g} (corners) in an image of {width:g} by {height:g}"
        )
    return [left / width, top / height, right / width, bottom / height]


class Unique:
    """Rejects repeated ids. Holds all ids in memory."""

    def __init__(self, name: str):
        self._name = name
        self._seen: set[Any] = set()

    def check(self, value: Any) -> None:
        """Rejects: duplicate_id."""
        if value in self._seen:
            raise Reject("duplicate_id", f"{self._name} {show(value)} occurs more than once")
        self._seen.add(value)


def choices(record: Any, name: str, index: str) -> tuple[list[str], int]:
    """Returns the options (at least two, none empty) and the index of the correct one, from the two named fields.

    Rejects: missing_field, wrong_type, too_few_choices, empty_choice, not_utf8, answer_index_out_of_range.
    """
    found = options(record, name)
    answer = field(record, index, int)
    if not 0 <= answer < len(found):
        raise Reject("answer_index_out_of_range", f"{index} is {show(answer)}, but there are {len(found)} {name}")
    return found, answer


def options(record: Any, name: str) -> list[str]:
    """Returns a list of at least two texts, none empty. Rejects: those of `choices`, except the last."""
    found = [clean(f"{name}[{i}]", option, "empty_choice") for i, option in enumerate(field(record, name, list))]
    if len(found) < 2:
        raise Reject("too_few_choices", f"{name} is {show(found)}, but at least two are needed")
    return found
