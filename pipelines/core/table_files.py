"""Third-party Parquet and Arrow files: the format is detected from the content, not the name, and reading is streamed.

A Hugging Face `Image` column holds `{bytes, path}`; readers of texts skip the bytes.
"""

import contextlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

MAX_GROUP_BYTES = 4 << 30  # per Parquet row group
_ROWS = 1024  # per batch; one conversation may take tens of kilobytes


class TableError(ValueError):
    """A file that is not a complete Parquet or Arrow file; the message names it."""


class TableFile(Protocol):
    """Columns in row groups. Reading raises exceptions that `table_errors` converts to a TableError."""

    schema: pa.Schema
    starts: np.ndarray  # int64 (groups + 1,): the first row of each group, then the total number of rows

    def read(self, group: int, column: str) -> pa.Array: ...

    def read_paths(self, group: int, column: str) -> pa.Array | None:
        """Returns a column of images without their bytes, or None if it holds nothing else."""
        ...

    def batches(self, columns: Collection[str], image: str | None) -> Iterator[pa.RecordBatch]:
        """Yields all rows in order, in batches. image: a column of images, which is read without its bytes and omitted
        if it holds nothing else."""
        ...


class _Parquet:
    # The metadata of single columns is never read, since pyarrow aborts the process if it is damaged.
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
            raise pa.ArrowInvalid(f"row group {group} has {size} bytes: rewrite the file with smaller row groups")
        return self._file.read_row_group(group, columns=[column])[column].combine_chunks()

    def read_paths(self, group: int, column: str) -> pa.Array | None:
        leaves = self._paths(column)
        return self._file.read_row_group(group, columns=leaves)[column].combine_chunks() if leaves else None

    def batches(self, columns: Collection[str], image: str | None) -> Iterator[pa.RecordBatch]:
        wanted = [*columns, *(self._paths(image) if image else [])]
        yield from self._file.iter_batches(_ROWS, columns=wanted)

    def _paths(self, column: str) -> list[str]:
        return [leaf for leaf in self._leaves if leaf.startswith(f"{column}.") and leaf.endswith(".path")]


class _Arrow:
    """An uncompressed Arrow stream, as `datasets.save_to_disk` writes it, or Arrow file with random access."""

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
        array.validate(full=True)  # damaged offsets would read arbitrary memory
        return array

    read_paths = read  # the bytes are mapped, not read

    def batches(self, columns: Collection[str], image: str | None) -> Iterator[pa.RecordBatch]:
        names = [*columns, *([image] if image else [])]
        for group, batch in enumerate(self._batches):
            for name in names:
                self.read(group, name)
            chosen = batch.select(names)
            yield from (chosen.slice(first, _ROWS) for first in range(0, chosen.num_rows, _ROWS))


def open_table(path: Path) -> TableFile:
    """Opens a Parquet or Arrow file. Raises TableError if it is not a complete file of either format."""
    with table_errors(path):
        with path.open("rb") as file:
            is_parquet = file.read(4) == b"PAR1"
        table: TableFile = _Parquet(path) if is_parquet else _Arrow(path)
        if not table.schema.names:  # raises if a name is not UTF-8
            raise pa.ArrowInvalid("it has no columns")
        return table


@contextlib.contextmanager
def table_errors(path: Path) -> Iterator[None]:
    """Converts the exceptions that readers raise for damaged content to TableError. I/O errors are passed through."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise TableError(f"{path.name} is not a complete Parquet or Arrow file: {str(error)[:200]}") from None


def holds_images(kind: pa.DataType) -> bool:
    """Returns whether a column of that type can hold encoded images, or lists of them."""
    if is_list(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
        if pa.types.is_null(kind):  # every image is stored as a path
            return True
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)
