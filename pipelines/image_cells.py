"""Images as bytes inside Parquet and Arrow files: a cell of a column, or an element of a list in a cell.

A cell holds the bytes themselves or a Hugging Face `Image`, `{bytes, path}`. Of a Parquet file one column of one row
group is read at a time, and the last ones are kept; an Arrow file is memory-mapped, so that a cell is read alone.
"""

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.image_error import ImageRefError

SUFFIXES = (".parquet", ".arrow")
KEPT_BYTES = 256 << 20  # of the row groups that were read last; the last two are kept whatever their size
MAX_GROUP_BYTES = 4 << 30  # of a row group


class Cell(NamedTuple):
    column: str
    row: int  # in the file
    element: int | None  # of the list that the cell is; None: it is no list

    def __str__(self) -> str:
        return f"{self.column}:{self.row}" + ("" if self.element is None else f"[{self.element}]")


class TableFile(Protocol):
    """A file of columns in groups of rows. Raises pyarrow errors, and OSError, where it is damaged."""

    schema: pa.Schema
    starts: np.ndarray  # int64 (groups + 1,): the first row of each group, and the number of rows

    def read(self, group: int, column: str) -> pa.Array: ...

    def read_paths(self, group: int, column: str) -> pa.Array | None:
        """The column without the bytes of its images; None: there would be nothing else."""
        ...


class _Parquet:
    # No metadata of single columns is looked at: pyarrow ends the process where these are damaged.
    def __init__(self, path: Path):
        self._file = pq.ParquetFile(pa.OSFile(str(path)), page_checksum_verification=True)
        self.schema = self._file.schema_arrow
        self._leaves = [self._file.schema.column(leaf).path for leaf in range(len(self._file.schema))]
        metadata = self._file.metadata
        self._groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
        self.starts = np.cumsum([0, *(group.num_rows for group in self._groups)])

    def read(self, group: int, column: str) -> pa.Array:
        size = self._groups[group].total_byte_size
        if size > MAX_GROUP_BYTES:
            raise ImageRefError("image_too_large", f"a row group has {size} bytes: write the file with smaller ones")
        return self._file.read_row_group(group, columns=[column])[column].combine_chunks()

    def read_paths(self, group: int, column: str) -> pa.Array | None:
        leaves = [leaf for leaf in self._leaves if leaf.startswith(f"{column}.") and leaf.endswith(".path")]
        return self._file.read_row_group(group, columns=leaves)[column].combine_chunks() if leaves else None


class _Arrow:
    """A stream, as `datasets.save_to_disk` writes them, or a file with random access; neither of them compressed."""

    def __init__(self, path: Path):
        mapped = pa.memory_map(str(path))
        if mapped.read_at(6, 0) == b"ARROW1":
            reader = pa.ipc.open_file(mapped)
            self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
            self.schema = reader.schema
        else:
            stream = pa.ipc.open_stream(mapped)
            self._batches, self.schema = list(stream), stream.schema
        self.starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])

    def read(self, group: int, column: str) -> pa.Array:
        array = self._batches[group].column(column)
        array.validate(full=True)  # of damaged offsets we would read anything
        return array

    read_paths = read  # the bytes are mapped, not read


class TableFiles:
    """Cells of any number of files; made once for a pass over the images. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: dict[str, TableFile | ImageRefError] = {}
        self._kept: OrderedDict[tuple[str, int, str, str], pa.Array | None] = OrderedDict()

    def path(self, file: str, cell: Cell) -> str | None:
        """The path that an image has, beside its bytes or in their place; the bytes are not read.
        Raises ImageRefError: image_bad_reference, image_missing, image_corrupt."""
        with self._lock, _damage_named(file):
            value = self._value(file, cell, "read_paths")
            return None if value is None else _path(value)

    def read(self, file: str, cell: Cell) -> bytes | str:
        """The bytes of an image, or the path of a file in their place. Raises ImageRefError as above, and
        image_too_large."""
        with self._lock, _damage_named(file):
            value = self._value(file, cell, "read")
            data = value["bytes"] if pa.types.is_struct(value.type) else value
            if data.is_valid:
                return data.as_py()
            path = _path(value)
        if path is None:
            raise ImageRefError("image_missing", f"{_name(file)}#{cell} has neither bytes nor a path")
        return path

    def _value(self, path: str, cell: Cell, read: str) -> Any:
        """The cell as `read` of its file gives it: a pyarrow scalar that is not null, or None if there is nothing."""
        file = self._file(path)
        where = f"{_name(path)}#{cell}"
        if file.schema.get_field_index(cell.column) < 0:
            raise ImageRefError("image_bad_reference", f"{where}: the columns are {', '.join(file.schema.names)}"[:400])
        kind = file.schema.field(cell.column).type
        if is_list(kind) != (cell.element is not None) or not holds_images(kind):
            raise ImageRefError("image_bad_reference", f"{where}: a column of {kind}")
        if cell.row >= file.starts[-1]:
            raise ImageRefError("image_missing", f"{where}: the file has {file.starts[-1]} rows")
        group = int(np.searchsorted(file.starts, cell.row, side="right")) - 1
        column = self._column(path, group, cell.column, read)
        if column is None:
            return None
        value = column[int(cell.row - file.starts[group])]
        if cell.element is not None and value.is_valid:
            if cell.element >= len(value.values):
                raise ImageRefError("image_missing", f"{where}: the list has {len(value.values)} elements")
            value = value.values[cell.element]
        if not value.is_valid:
            raise ImageRefError("image_missing", f"{where} is null")
        return value

    def _file(self, path: str) -> TableFile:
        if path not in self._files:
            try:
                self._files[path] = open_table(Path(path))
            except ImageRefError as error:
                self._files[path] = error
        file = self._files[path]
        if isinstance(file, ImageRefError):
            raise ImageRefError(file.reason, file.detail)
        return file

    def _column(self, path: str, group: int, name: str, read: str) -> pa.Array | None:
        key = (path, group, name, read)
        if key not in self._kept:
            file = self._file(path)
            column = getattr(file, read)(group, name)
            if column is not None and len(column) != file.starts[group + 1] - file.starts[group]:
                raise pa.ArrowInvalid(f"row group {group} has {len(column)} rows in the column {name}")
            self._kept[key] = column
            while (
                len(self._kept) > 2
                and sum(kept.nbytes for kept in self._kept.values() if kept is not None) > KEPT_BYTES
            ):
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]


def _path(value: Any) -> str | None:
    path = value["path"].as_py() if pa.types.is_struct(value.type) and "path" in value else None
    return path if isinstance(path, str) else None


def open_table(path: Path) -> TableFile:
    """Raises ImageRefError, image_corrupt, for what is no whole file of its kind."""
    with _damage_named(str(path)):
        table: TableFile = _Parquet(path) if path.suffix == ".parquet" else _Arrow(path)
        if not table.schema.names:  # raises where a name is not UTF-8
            raise pa.ArrowInvalid("it has no columns")
        return table


def holds_images(kind: pa.DataType) -> bool:
    """Whether a column of that type can hold images as bytes, or lists of them."""
    if is_list(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


@contextlib.contextmanager
def _damage_named(path: str) -> Iterator[None]:
    """What readers raise for damaged content as ImageRefError, image_corrupt. A disk that fails is no such thing."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        detail = f"{_name(path)} is no whole {Path(path).suffix[1:]} file: {str(error)[:200]}"
        raise ImageRefError("image_corrupt", detail) from None


def _name(path: str) -> str:
    return Path(path).name
