"""Any dataset in Hugging Face's files, by a map of its columns: Parquet, or what `datasets.save_to_disk` writes.

A row is a row of a file; rows are counted on over the files, sorted by path, or in the order of `state.json`. Pictures
stay where they are: a reference says file, column and row (pipelines/images.py), and no picture is read here.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.images import is_cell
from pipelines.sources.base import Reject, Source, SourceError, file_batches, matching_files
from pipelines.sources.hub import PARQUET
from pipelines.sources.options import SourceOptions
from pipelines.sources.table_rows import Record, row_of
from pipelines.table_files import TableError, TableFile, damage_named, holds_images, is_list, open_table

_STATE = "state.json"  # of one split that was saved
_SPLITS = "dataset_dict.json"  # of several


def source(options: SourceOptions) -> Source:
    """options.files: which files below the root; where absent, those that `state.json` lists or all Parquet files."""
    columns = options.columns
    if columns is None:
        raise SourceError("the source datasets needs `columns`: {task: …} and the column of each of the task's fields")

    def files(root: Path) -> list[Path]:
        return matching_files(root, options.files) if options.files else _files(root)

    def read(root: Path) -> Iterator[pa.RecordBatch]:
        def records(path: Path) -> Iterator[Record | Reject]:
            return _records(path, path.relative_to(root).as_posix(), options)

        yield from file_batches(columns.task, root, files(root), records, row_of(columns))

    return Source("datasets", columns.task, files, read, options=options.as_json())


def _files(root: Path) -> list[Path]:
    if (root / _STATE).is_file():
        return [_saved(root, entry) for entry in _json(root / _STATE, "_data_files", list)]
    if (root / _SPLITS).is_file():
        splits = ", ".join(map(str, _json(root / _SPLITS, "splits", list)))
        raise SourceError(f"{root} holds several splits ({splits}): name the directory of one as `annotations`")
    return matching_files(root, PARQUET)


def _saved(root: Path, entry: Any) -> Path:
    name = entry.get("filename") if isinstance(entry, dict) else None
    if not isinstance(name, str) or "/" in name or not (root / name).is_file():
        raise SourceError(f"{root / _STATE} lists {entry!r}, which is no file beside it: save the dataset again")
    return root / name


def _json(path: Path, key: str, kind: type) -> Any:
    try:
        value = json.loads(path.read_bytes())[key]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SourceError(f"{path}: no {key!r} can be read there ({error}): save the dataset again") from None
    if not isinstance(value, kind):
        raise SourceError(f"{path}: {key!r} is no {kind.__name__}: save the dataset again")
    return value


def _records(path: Path, reference: str, options: SourceOptions) -> Iterator[Record | Reject]:
    """The rows of a file. Raises SourceError for a file that is damaged or lacks a column."""
    columns = options.columns
    assert columns is not None
    try:
        with damage_named(path):
            table = open_table(path)
            texts = list(dict.fromkeys(columns.named.values()))
            for field, column in columns.named.items():
                _check(table, column, field, path)
            holding = _holds_images(table, columns.image, path)
            if holding and not is_cell(reference, columns.image or ""):
                raise SourceError(
                    f"{path}: a file of pictures must be called .parquet or .arrow, its column not with #"
                )
            names = _label_names(table.schema, columns.named.get("answer"), path)
            also = [columns.image] if columns.image and not holding else []
            row = 0
            for batch in table.batches(dict.fromkeys([*texts, *also]), columns.image if holding else None):
                pictures = _pictures(batch, table.schema, columns.image, reference, row)
                read = {column: _values(batch.column(column), column) for column in texts}
                for i in range(batch.num_rows):
                    values = {column: found[i] for column, found in read.items()}
                    bad = next((value for value in values.values() if isinstance(value, Reject)), None)
                    yield bad or Record(values, pictures[i], names)
                row += batch.num_rows
    except TableError as error:
        raise SourceError(f"{path}: {error}. Fetch the file again.") from None


def _holds_images(table: TableFile, column: str | None, path: Path) -> bool:
    """Whether the pictures lie in the column, and are not named by it."""
    if column is None:
        return False
    kind = _kind(table, column, "image", path)
    if is_list(kind):
        # How long a list of bytes is cannot be known without reading them.
        good = pa.types.is_struct(kind.value_type) and kind.value_type.get_field_index("path") >= 0
        good = (good and holds_images(kind)) or _is_text(kind.value_type)
    else:
        good = holds_images(kind) or _is_text(kind)
    if not good:
        raise SourceError(f"{path}: the column {column!r} is {kind}: neither bytes, Images, names nor a list of Images")
    return holds_images(kind)


def _check(table: TableFile, column: str, field: str, path: Path) -> None:
    kind = _kind(table, column, field, path)
    if not _is_readable(kind):
        raise SourceError(f"{path}: the column {column!r} ({field}) is {kind}: no texts, numbers or lists of them")


def _kind(table: TableFile, column: str, field: str, path: Path) -> pa.DataType:
    if table.schema.names.count(column) != 1:
        there = ", ".join(table.schema.names)
        raise SourceError(f"{path} has no one column {column!r} ({field}): correct `columns`; there are {there}"[:600])
    return table.schema.field(column).type


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_readable(kind: pa.DataType) -> bool:
    if is_list(kind) or pa.types.is_fixed_size_list(kind):
        return _is_readable(kind.value_type)
    if pa.types.is_struct(kind):
        return all(_is_readable(field.type) for field in kind)
    numbers = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    return numbers or _is_text(kind) or pa.types.is_null(kind)


def _label_names(schema: pa.Schema, column: str | None, path: Path) -> list[str] | None:
    """The names of a column's numbers, where the file says them (a ClassLabel)."""
    text = (schema.metadata or {}).get(b"huggingface")
    if column is None or text is None:
        return None
    try:
        feature = json.loads(text)["info"]["features"].get(column)
        if not feature or feature.get("_type") != "ClassLabel":
            return None
        names = feature["names"]
        if type(names) is not list or not all(type(name) is str for name in names):
            raise TypeError(f"the names of {column} are {names!r}")
        return names
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SourceError(f"{path}: what it says of its features cannot be read ({error!r}): write it again") from None


def _pictures(
    batch: pa.RecordBatch, schema: pa.Schema, column: str | None, reference: str, first: int
) -> list[list[str | None] | None]:
    """The pictures of each row, or None where there is none."""
    if column is None:
        return [None] * batch.num_rows
    kind = schema.field(column).type
    rows = range(first, first + batch.num_rows)
    if column not in batch.schema.names:  # bytes alone: whether they are there is seen when they are read
        return [[f"{reference}#{column}:{row}"] for row in rows]
    array = batch.column(column)
    if not holds_images(kind):
        values = _values(array, column)
        return [None if value is None else value if isinstance(value, list) else [value] for value in values]
    if not is_list(kind):
        there = array.is_valid().to_pylist()
        return [[f"{reference}#{column}:{row}"] if there[row - first] else None for row in rows]
    lengths = pc.list_value_length(array).to_pylist()
    return [
        None if length is None else [f"{reference}#{column}:{row}[{i}]" for i in range(length)]
        for row, length in zip(rows, lengths, strict=True)
    ]


def _values(array: pa.Array, column: str) -> list[Any]:
    """As Python values; a Reject in the place of one that is not UTF-8."""
    try:
        return array.to_pylist()
    except UnicodeDecodeError:
        return [_value(value, column) for value in array]


def _value(value: pa.Scalar, column: str) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        return Reject("not_utf8", f"{column}: byte {error.start} of {error.object[:40]!r}")
