"""The items of a benchmark as a store entry: the hashes of its images, and its questions."""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.core.arrow_files import write_batches
from pipelines.core.errors import ImageRefError
from pipelines.core.store import Store, digest_of
from pipelines.images.decode import measure
from pipelines.schema import BENCHMARK_IMAGES, BENCHMARK_QUESTIONS

VERSION = 1  # increment when the same key yields different bytes, for example when perceptual hashes change
_NAMED = 5  # the maximum number of unreadable images that an error message lists


class BenchmarkItemsError(ValueError):
    """A benchmark some of whose images cannot be read; the message names them."""


@dataclass(frozen=True)
class BenchmarkImage:
    """One image of a benchmark. item: the benchmark's name for it. identity: a string that stays the same as long as
    the bytes do. read: returns the encoded bytes, or raises ImageRefError."""

    item: str
    identity: str
    read: Callable[[], bytes]


@dataclass(frozen=True)
class BenchmarkItems:
    """The images and questions of one benchmark. questions: (item, text) pairs. passed_over: files next to the images
    that are not images and are ignored."""

    name: str
    images: Sequence[BenchmarkImage]
    questions: Sequence[tuple[str, str]]
    ignored_files: Sequence[str] = ()


def build_benchmark_items(store: Store, items: BenchmarkItems, log: Callable[[str], None] = print) -> Path:
    """Builds the store entry with `pictures.arrow` and `questions.arrow`, and returns its directory. Raises
    BenchmarkItemsError if an image cannot be read, since an image without a hash can never match training data."""
    key = {
        "version": VERSION,
        "pictures": digest_of((image.item, image.identity) for image in items.images),
        "questions": digest_of(items.questions),
    }

    def make(out: Path) -> dict[str, Any]:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            rows = list(pool.map(_hashes, items.images))
        bad = [row["error"] for row in rows if "error" in row]
        if bad:
            shown = "; ".join(bad[:_NAMED])
            raise BenchmarkItemsError(
                f"benchmark {items.name}: {len(bad)} of {len(rows)} images cannot be read, so overlaps with them would "
                f"be missed ({shown}): repair or remove these files"
            )
        images = pa.Table.from_pylist(rows, BENCHMARK_IMAGES)
        questions = [{"item": item, "question": text} for item, text in items.questions]
        write_batches(out / "pictures.arrow", BENCHMARK_IMAGES, images.to_batches())
        write_batches(
            out / "questions.arrow",
            BENCHMARK_QUESTIONS,
            pa.Table.from_pylist(questions, BENCHMARK_QUESTIONS).to_batches(),
        )
        without = images["phash"].null_count
        log(f"benchmark {items.name}: {len(rows):,} images ({without:,} too uniform for a perceptual hash, matched by "
            f"checksum only), {len(questions):,} questions")  # fmt: skip
        return {"num_pictures": len(rows), "num_plain": without, "num_questions": len(questions)}

    return store.produce("benchmark_items", key, make)


def _hashes(image: BenchmarkImage) -> dict[str, Any]:
    try:
        data = image.read()
        *_, phash = measure(data)
    except ImageRefError as error:
        return {"error": f"{image.item}: {error}"}
    return {"item": image.item, "sha256": hashlib.sha256(data).hexdigest(), "phash": phash}
