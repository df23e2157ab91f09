"""Reads any dataset in Hugging Face's file formats by a column map: Parquet, or the output of `datasets.save_to_disk`.

Row indices continue across files, which are sorted by path or in the order of `state.json`. Images are not read here:
a reference names the file, column and row that hold the image (see pipelines/images/table.py).
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.core.table_files import TableError, TableFile, holds_images, is_list, open_table, table_errors
from pipelines.images.references import is_cell
from pipelines.sources.base import Skips, Source, SourceError, file_batches, matching_files
from pipelines.sources.fields import Reject
from pipelines.sources.formats.chat_layouts import CONTEXT_FIELDS
from pipelines.sources.generic.columns import Record, row_of
from pipelines.sources.generic.hub import PARQUET
from pipelines.sources.options import Columns, ConversationColumns, SourceOptions

_STATE = "state.json"  # describes one saved split
_SPLITS = "dataset_dict.json"  # lists several saved splits
MAX_ROW_BYTES = 16 << 20  # of the texts of a row, as for an element of a JSON file


def source(options: SourceOptions) -> Source:
    """Returns the source. options.files: a glob below the root; default: the files of `state.json`, or all Parquet."""
    columns = options.columns
    if columns is None:
        raise SourceError("the source datasets needs `columns`: {task: …} and a column for each field of the task")

    def files(root: Path) -> list[Path]:
        return matching_files(root, options.files) if options.files else _files(root)

    def read(root: Path) -> Iterator[pa.RecordBatch]:
        def records(path: Path) -> Iterator[Record | Reject]:
            return _records(path, path.relative_to(root).as_posix(), options)

        skips = Skips()
        yield from file_batches(columns.task, root, files(root), records, row_of(columns, skips), skips)

    return Source("datasets", columns.task, files, read, options=options.as_json())


def _files(root: Path) -> list[Path]:
    if (root / _STATE).is_file():
        return [_saved(root, entry) for entry in _json(root / _STATE, "_data_files", list)]
    if (root / _SPLITS).is_file():
        splits = ", ".join(map(str, _json(root / _SPLITS, "splits", list)))
        raise SourceError(f"{root} contains several splits ({splits}): set `annotations` to the directory of one")
    return matching_files(root, PARQUET)


def _saved(root: Path, entry: Any) -> Path:
    name = entry.get("filename") if isinstance(entry, dict) else None
    if not isinstance(name, str) or "/" in name or not (root / name).is_file():
        raise SourceError(f"{root / _STATE} lists {entry!r}, which is not a file next to it: save the dataset again")
    return root / name


def _json(path: Path, key: str, kind: type) -> Any:
    try:
        value = json.loads(path.read_bytes())[key]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SourceError(f"{path}: {key!r} cannot be read ({error}): save the dataset again") from None
    if not isinstance(value, kind):
        raise SourceError(f"{path}: {key!r} is not a {kind.__name__}: save the dataset again")
    return value


def _records(path: Path, reference: str, options: SourceOptions) -> Iterator[Record | Reject]:
    """Yields the rows of a file. Raises SourceError if the file is damaged or lacks a column."""
    columns = options.columns
    assert columns is not None
    try:
        with table_errors(path):
            table = open_table(path)
            texts = list(dict.fromkeys(columns.named.values()))
            for field, column in columns.named.items():
                _check(table, column, field, path)
            embedded = _are_embedded(table, columns.image, path)
            if embedded and not is_cell(reference, columns.image or ""):
                raise SourceError(
                    f"{path}: a file of images must end in .parquet or .arrow, and its image column must not contain #"
                )
            names = _label_names(table.schema, columns.named.get("answer"), path)
            context = _context(table, columns)
            file_names = [columns.image] if columns.image and not embedded else []
            wanted = list(dict.fromkeys([*texts, *context, *file_names]))
            row = 0
            for batch in table.batches(wanted, columns.image if embedded else None):
                large = _large_rows(batch, wanted)
                read = {column: _values(_without(batch.column(column), large), column) for column in wanted}
                images = _images(batch, table.schema, columns.image, reference, row, read)
                for i in range(batch.num_rows):
                    values = {column: read[column][i] for column in texts}
                    others = {column: read[column][i] for column in context}
                    bad = next((v for v in (*values.values(), *others.values()) if isinstance(v, Reject)), None)
                    yield large.get(i) or bad or Record(values, images[i], names, others)
                row += batch.num_rows
    except TableError as error:
        raise SourceError(f"{path}: {error}. Fetch the file again.") from None


def _are_embedded(table: TableFile, column: str | None, path: Path) -> bool:
    """Returns whether the column holds the images themselves and not their file names."""
    if column is None:
        return False
    kind = _kind(table, column, "image", path)
    if pa.types.is_null(kind) or (is_list(kind) and pa.types.is_null(kind.value_type)):
        return False  # no row has an image
    if is_list(kind):
        # Without `path`, the length of a list is unknown until the image bytes are read.
        good = pa.types.is_struct(kind.value_type) and kind.value_type.get_field_index("path") >= 0
        good = (good and holds_images(kind)) or _is_text(kind.value_type)
    else:
        good = holds_images(kind) or _is_text(kind)
    if not good:
        raise SourceError(
            f"{path}: column {column!r} (image) has type {kind}; expected bytes, Image, file name, or a list of Images "
            "or file names"
        )
    return holds_images(kind)


def _check(table: TableFile, column: str, field: str, path: Path) -> None:
    kind = _kind(table, column, field, path)
    if not _is_readable(kind):
        raise SourceError(
            f"{path}: column {column!r} ({field}) has type {kind}; expected strings, numbers or lists of them"
        )


def _kind(table: TableFile, column: str, field: str, path: Path) -> pa.DataType:
    if table.schema.names.count(column) != 1:
        found = ", ".join(table.schema.names)
        message = f"{path} must have one column {column!r} ({field}): correct `columns`; the columns are {found}"
        raise SourceError(message[:600])
    return table.schema.field(column).type


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_readable(kind: pa.DataType) -> bool:
    if is_list(kind) or pa.types.is_fixed_size_list(kind):
        return _is_readable(kind.value_type)
    if pa.types.is_struct(kind):
        names = [field.name for field in kind]
        return len(set(names)) == len(names) and all(_is_readable(field.type) for field in kind)
    numbers = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    return numbers or _is_text(kind) or pa.types.is_null(kind)


def _label_names(schema: pa.Schema, column: str | None, path: Path) -> list[str] | None:
    """Returns the class names of an integer column if the file's metadata declares it as a ClassLabel."""
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
        raise SourceError(f"{path}: its features metadata cannot be read ({error!r}): write the file again") from None


def _images(
    batch: pa.RecordBatch, schema: pa.Schema, column: str | None, reference: str, first: int, read: Mapping[str, Any]
) -> list[list[str | None] | None]:
    """Returns the image references of each row, None for a row without images. read: column → its values."""
    if column is None:
        return [None] * batch.num_rows
    kind = schema.field(column).type
    rows = range(first, first + batch.num_rows)
    if column not in batch.schema.names:  # plain bytes: nulls are only found when the images are read
        return [[f"{reference}#{column}:{row}"] for row in rows]
    array = batch.column(column)
    if not holds_images(kind):
        values = read[column]
        return [None if value is None else value if isinstance(value, list) else [value] for value in values]
    if not is_list(kind):
        valid = array.is_valid().to_pylist()
        return [[f"{reference}#{column}:{row}"] if valid[row - first] else None for row in rows]
    lengths = pc.list_value_length(array).to_pylist()
    return [
        None if length is None else [f"{reference}#{column}:{row}[{i}]" for i in range(length)]
        for row, length in zip(rows, lengths, strict=True)
    ]


def _context(table: TableFile, columns: Columns) -> list[str]:
    """Returns the columns that belong to a conversation although no recipe names them, such as `system`."""
    if not isinstance(columns, ConversationColumns):
        return []
    schema, named = table.schema, {columns.conversations, columns.image}
    return [
        name
        for name in CONTEXT_FIELDS
        if name not in named and schema.names.count(name) == 1 and _is_readable(schema.field(name).type)
    ]


def _large_rows(batch: pa.RecordBatch, columns: list[str]) -> dict[int, Reject]:
    """Returns a Reject, row_too_large, for each row whose texts take more than MAX_ROW_BYTES."""
    arrays = [batch.column(column) for column in columns]
    if sum(array.nbytes for array in arrays) <= MAX_ROW_BYTES:
        return {}
    sizes = {i: sum(array.slice(i, 1).nbytes for array in arrays) for i in range(batch.num_rows)}
    detail = f"more than the limit of {MAX_ROW_BYTES:,}"
    return {
        i: Reject("row_too_large", f"the columns {', '.join(columns)} have {size:,} bytes, {detail}")
        for i, size in sizes.items()
        if size > MAX_ROW_BYTES
    }


def _without(array: pa.Array, rows: Mapping[int, Any]) -> pa.Array:
    """Returns the column with nulls in these rows, which are not converted to Python."""
    if not rows:
        return array
    return array.take(pa.array([None if i in rows else i for i in range(len(array))], pa.int64()))


def _values(array: pa.Array, column: str) -> list[Any]:
    """Returns Python values, with a Reject for each value that is not UTF-8."""
    try:
        return array.to_pylist()
    except UnicodeDecodeError:
        return [_value(value, column) for value in array]


def _value(value: pa.Scalar, column: str) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        return Reject("not_utf8", f"{column}: byte {error.start} of {error.object[:40]!r}")
