"""store/texts/ and store/embeddings/: the texts that de-duplication compares, and their vectors.

The versions in pipelines/dedup/ cover this code: `decide.VERSION` the choice of texts, `embeddings.VERSION` the
vectors.

The texts are collected in two passes. The first embeds single words; there are few of them, and they rule out most
pairs of turns. The second embeds the contents of the turns that remain undecided. Finished vectors are saved in parts,
so that a killed build can resume.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.core.arrow_files import open_batches, read_table, write_batches
from pipelines.core.files import file_sha256, write_atomic
from pipelines.core.ragged import offsets_of
from pipelines.core.store import MANIFEST, Store, read_manifest
from pipelines.dedup import decide
from pipelines.dedup import embeddings as vectors
from pipelines.examples.instructify import raw_texts
from pipelines.jobs.annotations import ROWS_PER_BATCH, annotation_batches, build_annotations
from pipelines.jobs.dataset import DatasetSpec, Log
from pipelines.schema import ANNOTATIONS

TURNS_AT_ONCE = 1 << 14
TABLE = "embeddings.arrow"
PARTS = ".part-*.arrow"  # hidden, so that the manifest does not list them
EMBEDDER = b"embedder"  # metadata key of a part: the fingerprint of its embedder


def build_embeddings(
    store: Store, specs: Sequence[DatasetSpec], model: str, device: str = "cpu", log: Log = print
) -> Path | None:
    """Builds one table with the vectors of all distinct texts that the datasets' deduplication compares. Returns None
    if there are none. Vectors from earlier tables of the same embedder, or from a killed build, are reused."""
    compared = [spec for spec in specs if spec.compares_vectors]
    if compared:
        vectors.check_embedder(model, device)  # fail before hours of reading
    first = [_first_texts(store, spec, build_annotations(store, spec, log)) for spec in compared]
    if not any(_num_texts(entry) for entry in first):
        return None
    make = partial(_table_of, store, model=model, device=device, log=log)
    table = make(first)
    second = [
        _contents(store, spec, build_annotations(store, spec, log), table)
        for spec in compared
        if spec.dedup.compare == "pair"
    ]
    return make([*first, *second])


def _first_texts(store: Store, spec: DatasetSpec, annotations: Path) -> Path:
    """Returns the store entry of the texts that need a vector before anything is compared."""
    key = {"version": decide.VERSION, "annotations": annotations.name, "compare": spec.dedup.compare}

    def texts() -> Iterator[set[str]]:
        for _, questions, answers in _turns(spec, annotations):
            yield decide.texts_to_embed(questions, answers, spec.dedup)

    return store.produce("texts", key, partial(_write_texts, texts()))


def _contents(store: Store, spec: DatasetSpec, annotations: Path, table: Path) -> Path:
    """Returns the store entry of the contents of all turns that their words leave undecided.

    table: embeddings of these words."""
    embeddings = vectors.Embeddings(read_table(table / TABLE))
    key = {
        "version": decide.VERSION,
        "annotations": annotations.name,
        "compare": spec.dedup.compare,
        "threshold": spec.dedup.threshold,
        "embedder": read_manifest(table)["key"]["embedder"],
    }

    def texts() -> Iterator[set[str]]:
        for offsets, questions, answers in _turns(spec, annotations):
            yield decide.contents_to_embed(offsets, questions, answers, embeddings, spec.dedup)

    return store.produce("texts", key, partial(_write_texts, texts()))


def _turns(spec: DatasetSpec, annotations: Path) -> Iterator[tuple[np.ndarray, list[str], list[str]]]:
    """Yields (offsets, questions, answers) of the turns that share their image with another turn, grouped by image,
    many images at a time. The other turns have nothing to be compared with."""
    table = pa.Table.from_batches(annotation_batches(annotations), ANNOTATIONS[spec.task])
    usable = pc.and_(table["reject"].is_null(), table["image"].is_valid()).to_numpy()
    image = pc.fill_null(table["image"].combine_chunks().dictionary_encode().indices, 0).to_numpy()
    rows = np.flatnonzero(usable)
    order = rows[np.argsort(image[rows], kind="stable")]
    sizes = np.bincount(image[rows])
    order, sizes = order[np.repeat(sizes > 1, sizes)], sizes[sizes > 1]
    offsets = offsets_of(sizes)
    begin = 0
    while begin < len(sizes):
        end = max(begin + 1, int(np.searchsorted(offsets, offsets[begin] + TURNS_AT_ONCE, "right")) - 1)
        chosen = table.take(pa.array(order[offsets[begin] : offsets[end]])).combine_chunks().to_batches()[0]
        questions, answers = (column.to_pylist() for column in raw_texts(chosen, spec.task))
        yield offsets[begin : end + 1] - offsets[begin], questions, answers
        begin = end


def _write_texts(texts: Iterable[set[str]], out: Path) -> dict[str, Any]:
    found: set[str] = set().union(*texts)
    table = pa.table({"text": pa.array(sorted(found), pa.string())})
    write_batches(out / "texts.arrow", table.schema, table.to_batches(ROWS_PER_BATCH))
    return {"num_texts": len(found)}


def _num_texts(entry: Path) -> int:
    return read_manifest(entry)["num_texts"]


def _table_of(store: Store, entries: Sequence[Path], model: str, device: str, log: Log) -> Path:
    """Returns the store entry of the embeddings of the texts in all `entries`."""
    embedder = vectors.embedder_fingerprint(model, device)
    key = {"embedder": embedder, "texts": sorted({entry.name for entry in entries})}

    def make(out: Path) -> dict[str, Any]:
        texts: set[str] = set()
        for entry in entries:
            texts.update(read_table(entry / "texts.arrow")["text"].to_pylist())
        known = list(_known(store, embedder))
        keep = partial(_write_part, out, embedder)
        table = vectors.embed_texts(texts, model, pa.concat_tables(known) if known else None, device, keep)
        write_batches(out / TABLE, table.schema, table.to_batches(ROWS_PER_BATCH))
        log(f"{table.num_rows:,} distinct texts embedded or reused")
        unknown = table.num_rows - (pc.sum(table["known"]).as_py() or 0)
        if unknown:
            log(f"WARNING: the embedder does not know {unknown:,} of them: their turns are only compared for equality")
        return {"num_texts": table.num_rows, "num_unknown": unknown}

    directory = store.produce("embeddings", key, make)
    for part in directory.glob(PARTS):  # only safe once the manifest has been written
        part.unlink(missing_ok=True)
    return directory


def _known(store: Store, embedder: dict[str, Any]) -> Iterator[pa.Table]:
    """Yields what the same embedder has produced: complete tables, and the parts of unfinished ones."""
    for directory in sorted((store.root / "embeddings").glob("[!.]*")):
        # A concurrent build may finish a table and remove its parts, whose vectors are then in the table.
        with contextlib.suppress(FileNotFoundError):
            if not (directory / MANIFEST).is_file():
                yield from _parts(directory, embedder)
    for directory, manifest in store.entries("embeddings", TABLE):
        if manifest["key"]["embedder"] == embedder:
            yield read_table(directory / TABLE)


def _write_part(out: Path, embedder: dict[str, Any], table: pa.Table) -> None:
    """Writes a part atomically; its name contains the checksum of its bytes."""
    metadata = {**(table.schema.metadata or {}), EMBEDDER: json.dumps(embedder, sort_keys=True).encode()}
    table = table.replace_schema_metadata(metadata)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    data = sink.getvalue().to_pybytes()
    write_atomic(out / f".part-{hashlib.sha256(data).hexdigest()[:16]}.arrow", data)


def _parts(directory: Path, embedder: dict[str, Any]) -> Iterator[pa.Table]:
    for path in sorted(directory.glob(PARTS)):
        if path.stem != f".part-{file_sha256(path)[:16]}":
            path.unlink()  # damaged, so its texts must be embedded again
            continue
        table = open_batches(path).read_all()
        metadata = dict(table.schema.metadata)
        if metadata.pop(EMBEDDER).decode() == json.dumps(embedder, sort_keys=True):
            yield table.replace_schema_metadata(metadata)
