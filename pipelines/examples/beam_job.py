"""Beam job 1: converts a dataset's annotations to examples, rejects and duplicates.

The graph uses only transforms that behave the same on every runner: Create → Reshuffle → ParDo → GroupByKey(int) → Map.
Elements refer to batches (file, index), never to rows. The first step splits each batch of the annotations and of the
images table into one piece per partition, by a hash of the image. GroupByKey collects the names of each partition's
pieces. The last step writes the partition's files and finally a marker file with its counts. Partitions that already
have a marker, and the files whose checksums it holds, are skipped.
"""

import itertools
import shutil
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.core.arrow_files import open_batches, write_batches, write_parquet
from pipelines.core.files import named_digests, write_atomic
from pipelines.core.hashing import mix64
from pipelines.core.integrity import DamagedError, listed, seal, unseal
from pipelines.examples.image_slots import image_rows
from pipelines.examples.render import Renderer
from pipelines.examples.settings import ExampleSettings
from pipelines.schema import ANNOTATIONS, EXAMPLES, IMAGES

ROWS_PER_BATCH = 1024  # examples per batch, the unit of random access when shards are written

Piece = tuple[str, str, int]  # (name of the spill file, input file, batch index in the input file)


@dataclass(frozen=True)
class ExamplesJob:
    """Everything that a worker needs. All directories are store entries."""

    annotations: Path
    images: Path | None  # the images table; None: text-only run that ignores images
    embeddings: Path | None  # None: no vectors are compared
    settings: ExampleSettings
    partitions: int
    out: Path

    def marker(self, partition: int) -> Path:
        return self.out / f"counts-{partition:05d}.json"

    def is_done(self, partition: int) -> bool:
        """Whether a killed build has completed the partition, and its files are as they were written."""
        try:
            files = unseal(self.marker(partition).read_bytes(), self.marker(partition))["files"]
            return files == named_digests(self.out, [self.out / name for name in files])
        except (FileNotFoundError, DamagedError):
            return False

    def counts(self, partition: int) -> dict[str, Any]:
        return unseal(self.marker(partition).read_bytes(), self.marker(partition))["counts"]

    def spilled(self, name: str) -> Path:
        return self.out / "spill" / f"{name}.arrow"

    def part(self, kind: str, partition: int, suffix: str) -> Path:
        return self.out / f"{kind}-{partition:05d}.{suffix}"


def run_examples_job(job: ExamplesJob, beam_options: list[str]) -> list[dict[str, Any]]:
    """Runs the job and returns the counts of each partition in order. Raises RuntimeError if the runner skipped one."""
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    class Spill(beam.DoFn):
        def process(self, piece: Piece) -> Iterator[tuple[int, str]]:
            spill_batch(job, piece)
            for partition in range(job.partitions):
                yield partition, piece[0]  # kept short, since there are pieces × partitions of these

    class Render(beam.DoFn):
        def process(self, element: tuple[int, Iterable[str]]) -> Iterator[int]:
            partition, spilled = element
            render_partition(job, partition, sorted(spilled))
            yield partition

    if not all(map(job.is_done, range(job.partitions))):
        pieces = _pieces("annotations", job.annotations) + (_pieces("images", job.images) if job.images else [])
        (job.out / "spill").mkdir(parents=True, exist_ok=True)
        with beam.Pipeline(options=PipelineOptions(beam_options)) as pipeline:
            _ = (
                pipeline
                | "list batches" >> beam.Create(pieces)
                | "distribute" >> beam.Reshuffle()
                | "split by image" >> beam.ParDo(Spill()).with_output_types(tuple[int, str])
                | "group by partition" >> beam.GroupByKey()
                | "render" >> beam.ParDo(Render()).with_output_types(int)
            )
    shutil.rmtree(job.out / "spill", ignore_errors=True)  # also left by a build that was killed right before this line
    lost = [p for p in range(job.partitions) if not job.marker(p).is_file()]
    if lost:
        raise RuntimeError(
            f"{job.settings.dataset}: the Beam runner did not process the partitions {lost}; run again with FnApiRunner"
        )
    return [job.counts(p) for p in range(job.partitions)]


def _pieces(kind: str, directory: Path) -> list[Piece]:
    paths = listed(directory, "*.arrow")
    batches = [(str(path), n) for path in paths for n in range(open_batches(path).num_record_batches)]
    return [(f"{kind[0]}{index}", *batch) for index, batch in enumerate(batches)]


def spill_batch(job: ExamplesJob, piece: Piece) -> None:
    """Splits one batch by the hash of the image and writes a spill file whose batch p is the piece of partition p."""
    name, source, index = piece
    batch = open_batches(Path(source)).get_batch(index)
    partition = _partition_of(batch, job.partitions)
    order = np.argsort(partition, kind="stable")
    bounds = np.searchsorted(partition[order], np.arange(job.partitions + 1))
    cut = batch.take(pa.array(order))
    write_batches(job.spilled(name), batch.schema, (cut.slice(a, b - a) for a, b in itertools.pairwise(bounds)))


def _partition_of(batch: pa.RecordBatch, partitions: int) -> np.ndarray:
    """Assigns rows to partitions by image, so that all turns of an image and its measurements share one partition. Rows
    without an image are assigned by row number."""
    images = batch.column("image").dictionary_encode()
    hashes = np.array([zlib.crc32(i.encode()) for i in images.dictionary.to_pylist()] + [0], dtype=np.uint64)
    partition = hashes[pc.fill_null(images.indices, len(hashes) - 1).to_numpy()]
    if images.null_count:
        without = images.indices.is_null().to_numpy(zero_copy_only=False)
        partition[without] = mix64(batch.column("row").to_numpy()[without].astype(np.uint64), 0)
    return (partition % np.uint64(partitions)).astype(np.int64)


def render_partition(job: ExamplesJob, partition: int, spilled: list[str]) -> None:
    """Writes the files of one partition from its pieces, and its marker last."""
    if job.is_done(partition):
        return
    job.marker(partition).unlink(missing_ok=True)
    pieces: dict[str, list[pa.RecordBatch]] = {"a": [], "i": []}  # annotations, images
    for name in spilled:
        pieces[name[0]].append(open_batches(job.spilled(name)).get_batch(partition))
    annotations = pa.Table.from_batches(pieces["a"], ANNOTATIONS[job.settings.task]).sort_by("row")
    images = pa.Table.from_batches(pieces["i"], IMAGES) if job.images else None
    if job.images and images is not None and "more_images" in annotations.schema.names:
        others = set(pc.list_flatten(annotations["more_images"]).to_pylist()) - set(images["image"].to_pylist())
        images = pa.concat_tables([images, image_rows(job.images, others)])
    result = Renderer.of(job.settings, job.embeddings).render(annotations, images)
    write_batches(job.part("examples", partition, "arrow"), EXAMPLES, result.examples.to_batches(ROWS_PER_BATCH))
    write_parquet(job.part("rejects", partition, "parquet"), result.rejects)
    write_parquet(job.part("duplicates", partition, "parquet"), result.duplicates)
    if result.overlaps is not None:
        write_parquet(job.part("overlaps", partition, "parquet"), result.overlaps)
    files = named_digests(job.out, job.out.glob(f"[!.]*-{partition:05d}.*"))
    write_atomic(job.marker(partition), seal({"counts": result.counts, "files": files}))
