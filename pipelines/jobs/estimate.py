"""Estimates how many examples and tokens a dataset yields before it is built. A bounded sample of its rows, which keeps
all rows of an image together, is rendered in memory and the counts are scaled to all rows. No image is opened."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.core.errors import ImageRefError
from pipelines.core.hashing import mix64
from pipelines.examples.image_slots import named_images
from pipelines.examples.render import Renderer
from pipelines.examples.settings import ExampleSettings
from pipelines.images.references import ImageRoot
from pipelines.jobs.dataset import DatasetSpec
from pipelines.schema import IMAGES

SAMPLE_ROWS = 2000


@dataclass(frozen=True)
class Estimate:
    """Estimated counts for all rows of a dataset, scaled from the rendered sample."""

    rendered: int  # rows of the sample
    not_removed: tuple[
        str, ...
    ]  # what the counts include but a build removes: `duplicates`, `overlaps` with benchmarks
    examples: int
    turns: float
    tokens: float  # without image tokens
    supervised: float
    images: float
    ledgers: Mapping[str, Any]  # of the rendered sample, for `rows` and `turns`, not scaled


def estimate(
    spec: DatasetSpec,
    annotations: pa.Table,
    settings: ExampleSettings,
    embeddings: Path | None,
    images: pa.Table | None,
    embed_images: bool,
) -> Estimate:
    """Estimates the examples of a dataset. settings: as for a build. embeddings: an embeddings table; if there is none
    or it lacks a text, duplicates are not removed. images: the images table of the dataset; if it is not built yet
    (None), only the existence of each image is checked, and overlaps with benchmarks are not removed."""
    sample = sample_rows(annotations, spec.task == "conversation", SAMPLE_ROWS)
    not_removed = []
    if embed_images and images is None:
        images = _present(spec, sample) if spec.images.is_dir() else None
        if settings.decontamination is not None:
            settings = replace(settings, decontamination=None)
            not_removed.append("overlaps")
    without_vectors = replace(settings, dedup=settings.dedup.without_vectors())
    if embeddings is None and settings.compares_vectors:
        settings = without_vectors
        not_removed.append("duplicates")
    try:
        counts = Renderer(settings, embeddings if settings.compares_vectors else None).render(sample, images).counts
    except KeyError:  # a text that was never embedded
        not_removed.append("duplicates")
        counts = Renderer(without_vectors).render(sample, images).counts
    scale = annotations.num_rows / sample.num_rows
    return Estimate(
        rendered=sample.num_rows,
        not_removed=tuple(not_removed),
        examples=round(counts["num_examples"] * scale),
        turns=counts["turns"]["examples"] * scale,
        tokens=(counts["num_tokens"] - counts["num_images"]) * scale,
        supervised=counts["num_supervised"] * scale,
        images=counts["num_images"] * scale,
        ledgers={unit: counts[unit] for unit in ("rows", "turns")},
    )


def count_examples(annotations: pa.Table, is_dialogue: bool, max_turns: int) -> int:
    """Counts the conversations that the rows form, before rendering splits or rejects any of them."""
    usable = annotations.filter(annotations["reject"].is_null())
    if is_dialogue:
        return usable.num_rows
    named = usable.filter(usable["image"].is_valid())
    per_image = named.group_by("image").aggregate([("image", "count")])["image_count"].to_numpy()
    return int((-(-per_image // max_turns)).sum()) + usable.num_rows - named.num_rows


def sample_rows(annotations: pa.Table, is_dialogue: bool, limit: int) -> pa.Table:
    """Samples about `limit` rows in their original order, with all rows of an image or none, so that examples keep
    their length."""
    if annotations.num_rows <= limit:
        return annotations
    unit = np.arange(annotations.num_rows)
    if not is_dialogue:
        encoded = annotations["image"].combine_chunks().dictionary_encode()
        with_image = encoded.indices.is_valid().to_numpy(zero_copy_only=False)
        hashes = np.array([zlib.crc32(name.encode()) for name in encoded.dictionary.to_pylist()], dtype=np.int64)
        unit[with_image] = hashes[encoded.indices.drop_null().to_numpy()] + annotations.num_rows
    units, unit_index, counts = np.unique(unit, return_inverse=True, return_counts=True)
    order = np.argsort(mix64(units.astype(np.uint64), 0), kind="stable")
    chosen = np.zeros(len(units), dtype=bool)
    chosen[order[: max(1, int((np.cumsum(counts[order]) <= limit).sum()))]] = True
    return annotations.filter(pa.array(chosen[unit_index]))


def _present(spec: DatasetSpec, sample: pa.Table) -> pa.Table:
    """Returns an images table of the sample that records only whether each file exists."""
    root = ImageRoot(spec.images, spec.image_links)
    rows = []
    for name in sorted(set().union(*map(named_images, sample.to_batches()))):
        row = {"image": name}
        try:
            root.locate(name)
        except ImageRefError as error:
            row |= {"reject": error.reason, "detail": error.detail}
        rows.append(row)
    return pa.Table.from_pylist(rows, IMAGES)
