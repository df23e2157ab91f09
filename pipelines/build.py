"""The data stages of a recipe. Each one produces a store entry that is keyed by everything its bytes depend on."""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines import dedup, sources
from pipelines.arrow_files import open_batches, read_table, write_batches
from pipelines.beam import BEAM_OPTIONS
from pipelines.chat_style import chat_style_file
from pipelines.decontaminate import Decontamination
from pipelines.examples import ExamplesJob, run_examples_job
from pipelines.images import identities, images_table
from pipelines.ledger import check_ledger
from pipelines.pictures import MAX_IMAGES, named_images
from pipelines.render import RenderSettings
from pipelines.schema import ANNOTATIONS, IMAGES
from pipelines.store import FileDigests, Store, digest_of, file_sha256, read_manifest
from pipelines.templates import read_templates, template_file
from pipelines.tokenizer import load_tokenizer

# Increment a version when a code change alters the bytes that its stage writes.
ANNOTATIONS_VERSION = 2
IMAGES_VERSION = 2
EXAMPLES_VERSION = 4

ROWS_PER_BATCH = 32768
ROWS_PER_FILE = 1 << 18
ROWS_PER_PARTITION = 16384
BYTES_PER_BATCH = BYTES_PER_PARTITION = 256 << 20  # limits the rows of long texts: an Arrow string column holds 2 GiB

Log = Callable[[str], None]


@dataclass(frozen=True)
class DatasetSpec:
    """One dataset of a recipe, with resolved paths."""

    name: str
    source: str
    annotations: Path
    images: Path
    max_turns: int = 1
    dedup_rule: str = "semantic"
    dedup_compare: str = "pair"
    dedup_threshold: float | None = None
    options: sources.SourceOptions = sources.NO_OPTIONS

    @property
    def reader(self) -> sources.Source:
        return sources.get(self.source, self.options)

    @property
    def task(self) -> str:
        return self.reader.task


def build_annotations(store: Store, spec: DatasetSpec, log: Log = print) -> Path:
    """Converts the official files to annotation batches, `annotations-*.arrow`, and returns their directory. The
    manifest lists the first row of each official file (`files_rows`). Raises SourceError for unreadable files."""
    source = spec.reader
    files = source.files(spec.annotations)
    digests = FileDigests(store).digests(files)
    names = [path.relative_to(spec.annotations).as_posix() for path in files]
    key = {
        "version": ANNOTATIONS_VERSION,
        "source": source.name,
        "source_version": source.version,
        "options": source.options,
        "files": [[name, digest] for name, digest in zip(names, digests, strict=True)],
    }

    def make(out: Path) -> dict[str, Any]:
        rows = 0
        first_rows: dict[str, int] = {}
        read = _noting_files(source.read(spec.annotations), names[0], first_rows)
        batches = _rebatched(read, ANNOTATIONS[source.task])
        for index, group in enumerate(_grouped(batches, ROWS_PER_FILE)):
            rows += write_batches(out / f"annotations-{index:05d}.arrow", ANNOTATIONS[source.task], group)
            log(f"{spec.name}: {rows:,} rows read")
        if not rows:
            raise sources.SourceError(f"{spec.annotations}: the files of {source.name} contain no rows")
        return {"num_rows": rows, "files_rows": [list(entry) for entry in first_rows.items()]}

    return store.produce("annotations", key, make)


def build_images(store: Store, specs: Sequence[DatasetSpec], log: Log = print) -> dict[str, Path]:
    """Measures every distinct image of the datasets, building one images table per image root. Returns dataset name →
    directory of its table. An image is reopened only if its path, size or modification time has changed."""
    tables: dict[str, Path] = {}
    for root in sorted({spec.images.resolve() for spec in specs}):
        users = [spec for spec in specs if spec.images.resolve() == root]
        names: set[str] = set()
        for spec in users:
            names |= distinct_images(build_annotations(store, spec, log))
        tables |= dict.fromkeys((s.name for s in users), _images_of_root(store, root, sorted(names), log))
    return tables


def _images_of_root(store: Store, root: Path, names: list[str], log: Log) -> Path:
    key = {"version": IMAGES_VERSION, "images": digest_of(zip(names, identities(root, names), strict=True))}

    def make(out: Path) -> dict[str, Any]:
        known = [
            read_table(manifest.parent / "images.arrow")
            for manifest in sorted((store.root / "images").glob("*/manifest.json"))
            if json.loads(manifest.read_text())["key"]["version"] == IMAGES_VERSION
        ]
        table = images_table(root, names, pa.concat_tables(known) if known else None)
        write_batches(out / "images.arrow", IMAGES, table.to_batches(ROWS_PER_BATCH))
        rejects = Counter(reason for reason in table["reject"].to_pylist() if reason)
        log(f"{root}: {table.num_rows:,} images, of which {sum(rejects.values())} are unusable")
        return {"num_images": table.num_rows, "rejects": dict(sorted(rejects.items()))}

    return store.produce("images", key, make)


def build_examples(
    store: Store,
    spec: DatasetSpec,
    *,
    templates: str,
    chat: str,
    tokenizer: Path,
    max_text_tokens: int,
    max_images: int = MAX_IMAGES,
    images: Path | None,
    embeddings: Path | None,
    seed: int,
    decontamination: Decontamination | None = None,
    beam_options: Sequence[str] = BEAM_OPTIONS,
    log: Log = print,
) -> Path:
    """Runs Beam job 1 for one dataset. Returns the directory of its examples, whose manifest holds the row ledger.

    images: what build_images returned, or None for a text-only run. embeddings: what build_embeddings returned, or
    None if deduplication needs no vectors. decontamination: the benchmarks whose images and questions are searched
    for, or None to search for none. Raises RuntimeError if any row is unaccounted for.
    """
    digests = FileDigests(store)
    annotations = build_annotations(store, spec, log)
    num_rows = read_manifest(annotations)["num_rows"]
    num_bytes = sum(path.stat().st_size for path in annotations.glob("*.arrow"))
    template_path = template_file(templates, spec.name, spec.task)
    compares = spec.max_turns > 1 and spec.task != "conversation" and spec.dedup_rule != "off"
    uses_vectors = compares and "semantic" in spec.dedup_rule
    key = {
        "version": EXAMPLES_VERSION,
        "dataset": spec.name,
        "annotations": annotations.name,
        "images": _digest_of_images(annotations, images),
        "dedup": _dedup_key(spec, embeddings) if compares else None,
        "template": digests.digest(template_path),
        "chat": digests.digest(chat_style_file(chat)),
        "tokenizer": load_tokenizer(tokenizer).fingerprint,
        "max_turns": spec.max_turns,
        "max_text_tokens": max_text_tokens,
        "max_images": max_images if spec.task == "conversation" else None,  # other tasks use one
        "seed": seed,
        "decontamination": decontamination.key() if decontamination else None,
    }

    def make(out: Path) -> dict[str, Any]:
        job = ExamplesJob(
            annotations=str(annotations),
            images=str(images) if images else None,
            render=render_settings(
                spec,
                template_file=template_path,
                chat=chat,
                tokenizer=tokenizer,
                max_text_tokens=max_text_tokens,
                max_images=max_images,
                embeddings=embeddings if uses_vectors else None,
                seed=seed,
                decontamination=decontamination,
            ),
            partitions=max(-(-num_rows // ROWS_PER_PARTITION), -(-num_bytes // BYTES_PER_PARTITION)),
            out=str(out),
        )
        log(f"{spec.name}: {num_rows:,} rows in {job.partitions} partitions")
        counts = run_examples_job(job, list(beam_options))
        manifest = _total(counts)
        check_ledger("rows", manifest["rows"])
        if manifest["rows"]["read"] != num_rows:
            raise RuntimeError(
                f"{spec.name}: {num_rows} rows read, but only {manifest['rows']['read']} were partitioned"
            )
        for marker in out.glob("counts-*.json"):
            marker.unlink()
        log(f"{spec.name}: {manifest['num_examples']:,} examples. {_summary(manifest['rows'])}; rejects in {out}")
        names = [f"examples-{p:05d}.arrow" for p in range(len(counts))]
        files = [[name, c["num_examples"], file_sha256(out / name)] for name, c in zip(names, counts, strict=True)]
        rendered_by = [dataclasses.asdict(template) for template in read_templates(template_path, spec.task)]
        origin = {"dataset": spec.name, "source": spec.source, "task": spec.task}
        return {**origin, **manifest, "templates": rendered_by, "files": files}

    return store.produce("examples", key, make)


def render_settings(
    spec: DatasetSpec,
    *,
    template_file: Path,
    chat: str,
    tokenizer: Path,
    max_text_tokens: int,
    max_images: int = MAX_IMAGES,
    embeddings: Path | None,
    seed: int,
    decontamination: Decontamination | None,
) -> RenderSettings:
    """Returns the settings for rendering a dataset's annotations into examples."""
    return RenderSettings(
        dataset=spec.name,
        task=spec.task,
        template_file=str(template_file),
        chat=chat,
        tokenizer=str(tokenizer),
        embeddings=str(embeddings) if embeddings else None,
        max_turns=spec.max_turns,
        max_text_tokens=max_text_tokens,
        dedup_rule=spec.dedup_rule,
        dedup_compare=spec.dedup_compare,
        dedup_threshold=spec.dedup_threshold,
        seed=seed,
        max_images=max_images,
        decontamination=decontamination,
    )


def _summary(rows: dict[str, Any]) -> str:
    """Describes a row ledger in one sentence."""
    rejects = "".join(f", {count:,} {reason}" for reason, count in rows["rejects"].items())
    kept = f"{rows['examples']:,} in examples, {rows['duplicates']:,} duplicates"
    return f"Of {rows['read']:,} rows, {kept}{rejects}"


def _total(counts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Sums the counts of all partitions, key by key."""
    total: dict[str, Any] = {}
    for part in counts:
        for name, value in part.items():
            nested = isinstance(value, dict)
            total[name] = _total([total.get(name, {}), value]) if nested else total.get(name, 0) + value
    return total


def _dedup_key(spec: DatasetSpec, embeddings: Path | None) -> dict[str, Any]:
    chosen = {"rule": spec.dedup_rule, "compare": spec.dedup_compare, "threshold": spec.dedup_threshold}
    embedder = read_manifest(embeddings)["key"]["embedder"] if embeddings and "semantic" in spec.dedup_rule else None
    return {**chosen, "version": dedup.STAGE_VERSION, "embedder": embedder}


def annotation_batches(annotations: Path) -> Iterator[pa.RecordBatch]:
    for path in sorted(annotations.glob("*.arrow")):
        reader = open_batches(path)
        for index in range(reader.num_record_batches):
            yield reader.get_batch(index)


def distinct_images(annotations: Path) -> set[str]:
    names: set[str] = set()
    for batch in annotation_batches(annotations):
        names |= named_images(batch)
    return names


def _digest_of_images(annotations: Path, images: Path | None) -> str | None:
    """Digests the rows of the images table that the examples depend on, which are those of the dataset's own images."""
    if images is None:
        return None
    table = read_table(images / "images.arrow").select(["image", "sha256", "width", "height", "reject"])
    own = pc.is_in(table["image"], value_set=pa.array(sorted(distinct_images(annotations)), pa.string()))
    return digest_of(map(tuple, (row.values() for row in table.filter(own).to_pylist())))


def _noting_files(batches: Iterator[pa.RecordBatch], only: str, first_rows: dict[str, int]) -> Iterator[pa.RecordBatch]:
    """Yields the batches unchanged and records the first row of each file; `only` is used if a batch names no file."""
    for batch in batches:
        file = (batch.schema.metadata or {}).get(sources.FILE)
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
