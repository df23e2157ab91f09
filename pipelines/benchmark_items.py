"""What a benchmark shows and asks, as an entry of the store: the pictures' hashes, and the questions."""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.arrow_files import write_batches
from pipelines.images import ImageRefError, measure
from pipelines.schema import BENCHMARK_PICTURES, BENCHMARK_QUESTIONS
from pipelines.store import Store, digest_of

VERSION = 1  # raise it when the same key gives other bytes, as when perceptual hashes change
_NAMED = 5  # so many bad pictures stand in a message


class BenchmarkItemsError(ValueError):
    """A benchmark that cannot be looked for whole; the message names what is missing."""


@dataclass(frozen=True)
class BenchmarkPicture:
    """`item`: what the benchmark calls it. `identity`: the same as long as its bytes are. `read`: the encoded bytes;
    raises ImageRefError."""

    item: str
    identity: str
    read: Callable[[], bytes]


@dataclass(frozen=True)
class BenchmarkItems:
    """questions: (item, text) each. passed_over: files beside the pictures that are none."""

    name: str
    pictures: Sequence[BenchmarkPicture]
    questions: Sequence[tuple[str, str]]
    passed_over: Sequence[str] = ()


def build_benchmark_items(store: Store, items: BenchmarkItems, log: Callable[[str], None] = print) -> Path:
    """`pictures.arrow` and `questions.arrow`. Raises BenchmarkItemsError if a picture cannot be read: what is not
    hashed would not be found in the training data either."""
    key = {
        "version": VERSION,
        "pictures": digest_of((picture.item, picture.identity) for picture in items.pictures),
        "questions": digest_of(items.questions),
    }

    def make(out: Path) -> dict[str, Any]:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            rows = list(pool.map(_hashes, items.pictures))
        bad = [row["error"] for row in rows if "error" in row]
        if bad:
            shown = "; ".join(bad[:_NAMED])
            raise BenchmarkItemsError(
                f"benchmark {items.name}: {len(bad)} of {len(rows)} pictures cannot be read, so they cannot be looked "
                f"for ({shown}): mend or remove them"
            )
        pictures = pa.Table.from_pylist(rows, BENCHMARK_PICTURES)
        questions = [{"item": item, "question": text} for item, text in items.questions]
        write_batches(out / "pictures.arrow", BENCHMARK_PICTURES, pictures.to_batches())
        write_batches(
            out / "questions.arrow",
            BENCHMARK_QUESTIONS,
            pa.Table.from_pylist(questions, BENCHMARK_QUESTIONS).to_batches(),
        )
        without = pictures["phash"].null_count
        log(f"benchmark {items.name}: {len(rows):,} pictures ({without:,} too plain to be known but by their bytes), "
            f"{len(questions):,} questions")  # fmt: skip
        return {"num_pictures": len(rows), "num_plain": without, "num_questions": len(questions)}

    return store.produce("benchmark_items", key, make)


def _hashes(picture: BenchmarkPicture) -> dict[str, Any]:
    try:
        data = picture.read()
        *_, phash = measure(data)
    except ImageRefError as error:
        return {"error": f"{picture.item}: {error}"}
    return {"item": picture.item, "sha256": hashlib.sha256(data).hexdigest(), "phash": phash}
