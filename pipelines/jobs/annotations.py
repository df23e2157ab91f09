"""store/annotations/: official files → Arrow batches of annotations.

Raise VERSION when a change to pipelines/sources/ changes the bytes that are written for every source;
a change to one source raises its own `version`.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines import sources
from pipelines.core.arrow_files import open_batches, write_batches
from pipelines.core.integrity import listed
from pipelines.core.store import FileDigests, Store
from pipelines.core.walk import outside_links
from pipelines.jobs.dataset import DatasetSpec, Log
from pipelines.schema import ANNOTATIONS

VERSION = 3
ROWS_PER_BATCH = 32768
ROWS_PER_FILE = 1 << 18
BYTES_PER_BATCH = 256 << 20  # limits the rows of long texts: an Arrow string column holds 2 GiB


def build_annotations(store: Store, spec: DatasetSpec, log: Log = print) -> Path:
    """Converts the official files to annotation batches, `annotations-*.arrow`, and returns their directory. The
    manifest lists the first row of each official file (`files_rows`), and what is not a row and was skipped
    (`skipped`). Raises SourceError for unreadable files."""
    source = spec.reader
    files = source.files(spec.annotations)
    digests = FileDigests(store).digests(files)
    names = [path.relative_to(spec.annotations).as_posix() for path in files]
    if spec.image_links == "refuse" and (outside := outside_links(spec.annotations, names)):
        raise sources.SourceError(
            f"{spec.annotations / outside[0]} is, through a link, outside {spec.annotations} ({len(outside)} such "
            "files): put the files there, or set image_links to follow"
        )
    key = {
        "version": VERSION,
        "source": source.name,
        "source_version": source.version,
        "options": source.options,
        "files": [[name, digest] for name, digest in zip(names, digests, strict=True)],
    }

    def make(out: Path) -> dict[str, Any]:
        rows = 0
        first_rows: dict[str, int] = {}
        skipped: dict[str, Any] = {}
        read = _noting_files(source.read(spec.annotations), names[0], first_rows, skipped)
        batches = _rebatched(read, ANNOTATIONS[source.task])
        for index, group in enumerate(_grouped(batches, ROWS_PER_FILE)):
            rows += write_batches(out / f"annotations-{index:05d}.arrow", ANNOTATIONS[source.task], group)
            log(f"{spec.name}: {rows:,} rows read")
        if not rows:
            raise sources.SourceError(f"{spec.annotations}: the files of {source.name} contain no rows")
        for reason, found in skipped.items():
            log(f"{spec.name}: {found['count']:,} {reason} skipped, such as {', '.join(found['examples'])}")
        return {"num_rows": rows, "files_rows": [list(entry) for entry in first_rows.items()], "skipped": skipped}

    return store.produce("annotations", key, make)


def annotation_batches(annotations: Path) -> Iterator[pa.RecordBatch]:
    for path in listed(annotations, "*.arrow"):
        reader = open_batches(path)
        for index in range(reader.num_record_batches):
            yield reader.get_batch(index)


def _noting_files(
    batches: Iterator[pa.RecordBatch], only: str, first_rows: dict[str, int], skipped: dict[str, Any]
) -> Iterator[pa.RecordBatch]:
    """Yields the batches of rows unchanged and records the first row of each file and what was skipped; `only` is used
    if a batch names no file."""
    for batch in batches:
        metadata = batch.schema.metadata or {}
        if sources.SKIPPED in metadata:
            skipped |= json.loads(metadata[sources.SKIPPED])
            continue
        file = metadata.get(sources.FILE)
        first_rows.setdefault(file.decode() if file else only, batch.column("row")[0].as_py())
        yield batch


def _rebatched(batches: Iterator[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Merges batches into fewer, larger ones, since each batch is later cut into one piece per partition."""
    waiting: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        if rows and size + batch.nbytes > BYTES_PER_BATCH:
            yield from pa.Table.from_batches(waiting, schema).combine_chunks().to_batches()
            waiting, rows, size = [], 0, 0
        waiting.append(batch)
        rows, size = rows + batch.num_rows, size + batch.nbytes
        if rows >= ROWS_PER_BATCH:
            yield from pa.Table.from_batches(waiting, schema).combine_chunks().to_batches()
            waiting, rows, size = [], 0, 0
    if rows:
        yield from pa.Table.from_batches(waiting, schema).combine_chunks().to_batches()


def _grouped(batches: Iterator[pa.RecordBatch], rows_per_file: int) -> Iterator[list[pa.RecordBatch]]:
    group: list[pa.RecordBatch] = []
    for batch in batches:
        group.append(batch)
        if sum(b.num_rows for b in group) >= rows_per_file:
            yield group
            group = []
    if group:
        yield group
