"""store/examples/: the annotations of a dataset → its examples, rejects and duplicates, by Beam job 1.

Raise VERSION when a change to pipelines/examples/, pipelines/templates/ or pipelines/tokens/ changes the bytes that are
written; pipelines/dedup/ and pipelines/decontamination/ have versions of their own in the key.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.core.arrow_files import read_table
from pipelines.core.beam import BEAM_OPTIONS
from pipelines.core.integrity import listed
from pipelines.core.store import Store, digest_of, read_manifest
from pipelines.examples.beam_job import ExamplesJob, run_examples_job
from pipelines.examples.ledger import check_ledger
from pipelines.examples.settings import ExampleSettings
from pipelines.jobs.annotations import build_annotations
from pipelines.jobs.dataset import DatasetSpec, Log, Tables
from pipelines.jobs.images import distinct_images

VERSION = 6
ROWS_PER_PARTITION = 16384
BYTES_PER_PARTITION = 256 << 20


def build_examples(
    store: Store,
    spec: DatasetSpec,
    settings: ExampleSettings,
    tables: Tables = Tables(),
    beam_options: Sequence[str] = BEAM_OPTIONS,
    log: Log = print,
) -> Path:
    """Runs Beam job 1 for one dataset. Returns the directory of its examples, whose manifest contains the ledger.

    Raises RuntimeError if rows are not conserved."""
    annotations = build_annotations(store, spec, log)
    num_rows = read_manifest(annotations)["num_rows"]
    num_bytes = sum(path.stat().st_size for path in listed(annotations, "*.arrow"))
    key = {
        "version": VERSION,
        "annotations": annotations.name,
        "images": _digest_of_images(annotations, tables.images),
        **settings.key(tables.embeddings),
    }

    def make(out: Path) -> dict[str, Any]:
        job = ExamplesJob(
            annotations=annotations,
            images=tables.images,
            embeddings=tables.embeddings if settings.compares_vectors else None,
            settings=settings,
            partitions=max(-(-num_rows // ROWS_PER_PARTITION), -(-num_bytes // BYTES_PER_PARTITION)),
            out=out,
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
        if unread := manifest["compared_for_equality"]:
            log(
                f"WARNING: {spec.name}: {unread:,} turns were only compared for equality: their language is not "
                "English, or the embedder does not know their words or their length (see docs/deduplication.md)"
            )
        names = [f"examples-{p:05d}.arrow" for p in range(len(counts))]
        files = [[name, c["num_examples"]] for name, c in zip(names, counts, strict=True)]
        origin = {"dataset": spec.name, "source": spec.source, "task": spec.task}
        return {
            **origin,
            **manifest,
            "templates": [asdict(template) for template in settings.templates],
            "files": files,
        }

    return store.produce("examples", key, make)


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


def _digest_of_images(annotations: Path, images: Path | None) -> str | None:
    """Digests the rows of the images table that the examples depend on, which are those of the dataset's own images."""
    if images is None:
        return None
    table = read_table(images / "images.arrow").select(["image", "sha256", "width", "height", "reject"])
    own = pc.is_in(table["image"], value_set=pa.array(sorted(distinct_images(annotations)), pa.string()))
    return digest_of(map(tuple, (row.values() for row in table.filter(own).to_pylist())))
