"""The data stages of a recipe. Each one produces a store entry that is keyed by everything its bytes depend on."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.core.arrow_files import read_table
from pipelines.core.beam import BEAM_OPTIONS
from pipelines.core.files import file_sha256
from pipelines.core.store import FileDigests, Store, digest_of, read_manifest
from pipelines.decontamination.match import Decontamination
from pipelines.dedup import decide
from pipelines.examples.beam_job import ExamplesJob, run_examples_job
from pipelines.examples.image_slots import MAX_IMAGES
from pipelines.examples.ledger import check_ledger
from pipelines.examples.render import RenderSettings
from pipelines.jobs.annotations import build_annotations
from pipelines.jobs.dataset import DatasetSpec, Log
from pipelines.jobs.images import distinct_images
from pipelines.templates.sets import read_templates, template_file
from pipelines.tokens.chat_style import chat_style_file
from pipelines.tokens.tokenizer import load_tokenizer

EXAMPLES_VERSION = 4
ROWS_PER_PARTITION = 16384
BYTES_PER_PARTITION = 256 << 20


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
    return {**chosen, "version": decide.STAGE_VERSION, "embedder": embedder}


def _digest_of_images(annotations: Path, images: Path | None) -> str | None:
    """Digests the rows of the images table that the examples depend on, which are those of the dataset's own images."""
    if images is None:
        return None
    table = read_table(images / "images.arrow").select(["image", "sha256", "width", "height", "reject"])
    own = pc.is_in(table["image"], value_set=pa.array(sorted(distinct_images(annotations)), pa.string()))
    return digest_of(map(tuple, (row.values() for row in table.filter(own).to_pylist())))
