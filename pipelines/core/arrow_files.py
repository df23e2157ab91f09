"""Arrow files on disk: written atomically, and read through a memory map without loading them."""

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.core.files import atomic_file


def write_batches(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
    """Writes an uncompressed Arrow file (random access by batch); returns the number of rows."""
    rows = 0
    with atomic_file(path) as partial, pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
            rows += batch.num_rows
    return rows


def open_batches(path: Path) -> pa.ipc.RecordBatchFileReader:
    """Returns a reader of a memory-mapped Arrow file. Raises pyarrow.ArrowInvalid if the file is incomplete."""
    return pa.ipc.open_file(pa.memory_map(str(path)))


def read_table(path: Path) -> pa.Table:
    return open_batches(path).read_all()


def write_parquet(path: Path, table: pa.Table) -> None:
    with atomic_file(path) as partial:
        pq.write_table(table, partial, compression="zstd")
