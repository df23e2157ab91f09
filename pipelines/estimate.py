"""How much a dataset will give, before it is built: a bounded sample of its rows is rendered in memory, whole images at
a time, and what came out is scaled to all rows. No picture is opened."""

import dataclasses
import zlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipelines.build import DatasetSpec
from pipelines.hashing import mix64
from pipelines.images import ImageRefError, ImageRoot
from pipelines.pictures import named_images
from pipelines.render import Renderer, RenderSettings
from pipelines.schema import IMAGES

SAMPLE_ROWS = 2000


@dataclass(frozen=True)
class Estimate:
    """Of all rows of a dataset, scaled from those rendered."""

    rendered: int  # rows
    left_in: tuple[str, ...]  # what a build would leave out besides: `duplicates`, `overlaps` with benchmarks
    examples: int
    turns: float
    tokens: float  # image tokens aside
    supervised: float
    images: float


def estimate(
    spec: DatasetSpec, annotations: pa.Table, settings: RenderSettings, images: pa.Table | None, embed_images: bool
) -> Estimate:
    """settings: as for a build; where its embeddings lack a text, or there are none, duplicates are left in. images:
    the measures of all of the dataset's images; where they are not measured yet (None), pictures are only looked for,
    and overlaps with benchmarks are left in."""
    sample = sample_rows(annotations, spec.task == "conversation", SAMPLE_ROWS)
    left_in = []
    if embed_images and images is None:
        images = _present(spec, sample) if spec.images.is_dir() else None
        if settings.decontamination is not None:
            settings = dataclasses.replace(settings, decontamination=None)
            left_in.append("overlaps")
    if settings.embeddings is None and _compares_vectors(settings):
        settings = _without_vectors(settings)
        left_in.append("duplicates")
    try:
        counts = Renderer(settings).render(sample, images).counts
    except KeyError:  # a text that was never embedded
        left_in.append("duplicates")
        counts = Renderer(_without_vectors(settings)).render(sample, images).counts
    scale = annotations.num_rows / sample.num_rows
    return Estimate(
        rendered=sample.num_rows,
        left_in=tuple(left_in),
        examples=round(counts["num_examples"] * scale),
        turns=counts["turns"]["examples"] * scale,
        tokens=(counts["num_tokens"] - counts["num_images"]) * scale,
        supervised=counts["num_supervised"] * scale,
        images=counts["num_images"] * scale,
    )


def count_examples(annotations: pa.Table, is_dialogue: bool, max_turns: int) -> int:
    """The groups that the rows will make, before any is split or left out by what is seen only when it is rendered."""
    usable = annotations.filter(annotations["reject"].is_null())
    if is_dialogue:
        return usable.num_rows
    named = usable.filter(usable["image"].is_valid())
    per_image = named.group_by("image").aggregate([("image", "count")])["image_count"].to_numpy()
    return int((-(-per_image // max_turns)).sum()) + usable.num_rows - named.num_rows


def sample_rows(annotations: pa.Table, is_dialogue: bool, limit: int) -> pa.Table:
    """About `limit` rows, sorted as they were; an image's rows stay together, so that examples are as long as ever."""
    if annotations.num_rows <= limit:
        return annotations
    unit = np.arange(annotations.num_rows)
    if not is_dialogue:
        numbers = annotations["image"].combine_chunks().dictionary_encode()
        with_image = numbers.indices.is_valid().to_numpy(zero_copy_only=False)
        hashes = np.array([zlib.crc32(name.encode()) for name in numbers.dictionary.to_pylist()], dtype=np.int64)
        unit[with_image] = hashes[numbers.indices.drop_null().to_numpy()] + annotations.num_rows
    units, place, counts = np.unique(unit, return_inverse=True, return_counts=True)
    order = np.argsort(mix64(units.astype(np.uint64), 0), kind="stable")
    chosen = np.zeros(len(units), dtype=bool)
    chosen[order[: max(1, int((np.cumsum(counts[order]) <= limit).sum()))]] = True
    return annotations.filter(pa.array(chosen[place]))


def _compares_vectors(settings: RenderSettings) -> bool:
    return "semantic" in settings.dedup_rule and settings.max_turns > 1 and settings.task != "conversation"


def _without_vectors(settings: RenderSettings) -> RenderSettings:
    rule = "answer" if "answer" in settings.dedup_rule else "off"
    return dataclasses.replace(settings, embeddings=None, dedup_rule=rule)


def _present(spec: DatasetSpec, sample: pa.Table) -> pa.Table:
    """An images table of the sample that knows only whether there is a file."""
    root = ImageRoot(spec.images)
    rows = []
    for name in sorted(set().union(*map(named_images, sample.to_batches()))):
        row = {"image": name}
        try:
            root.locate(name)
        except ImageRefError as error:
            row |= {"reject": error.reason, "detail": error.detail}
        rows.append(row)
    return pa.Table.from_pylist(rows, IMAGES)
