"""Finds training rows that overlap with a benchmark, by their images or by n-grams shared between questions.

A benchmark's image affects the whole row, whatever is asked about it; a benchmark's question affects only one turn. Two
kinds of question are ignored: those shorter than an n-gram ("Is there a dog?" is in every benchmark and every dataset),
and boilerplate that a benchmark repeats ("Compare the average kinetic energies of the particles in each sample").
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.core.arrow_files import read_table
from pipelines.decontamination.ngrams import Ngrams
from pipelines.images.perceptual_hash import near_pairs
from pipelines.schema import ASKING_FIELD, OVERLAPS, WHOLE_ROW

VERSION = 1  # part of the examples' key: raise it when a change here, in ngrams.py or perceptual.py alters a decision
REASON = "benchmark"  # the reject reason
KINDS = ("bytes", "perceptual", "question")


@dataclass(frozen=True)
class Decontamination:
    """The settings of decontamination.

    benchmarks: (name, directory of build_benchmark_items). pictures: how images are compared: `exact` (same bytes),
    `perceptual` (same bytes, or hashes that differ in at most `distance` bits) or `skip`. words: the n of the n-grams;
    with 0, questions are not compared. action: `drop` removes what is found, `report` only lists it.
    """

    benchmarks: tuple[tuple[str, str], ...]
    images: str
    distance: int
    words: int
    action: str

    def key(self) -> dict[str, Any]:
        """Returns what examples depend on. A benchmark counts by its content, not by the path of its directory."""
        return {
            "version": VERSION,
            "benchmarks": [[name, Path(directory).name] for name, directory in self.benchmarks],
            "pictures": self.images,
            "distance": self.distance if self.images == "perceptual" else None,
            "words": self.words,
            "action": self.action,
        }


class Overlaps:
    """The overlaps of one partition with the benchmarks. `table`: schema OVERLAPS, sorted by row."""

    def __init__(self, table: pa.Table, settings: Decontamination):
        self.table = table
        self._dropped = table if settings.action == "drop" else table.slice(0, 0)
        self._names = [name for name, _ in settings.benchmarks]

    def rows(self) -> dict[int, str]:
        """Returns row → detail of the reject, for each row to drop."""
        return {row: why for (row, turn), why in self._reasons() if turn == WHOLE_ROW}

    def turns(self, row: np.ndarray, turn: np.ndarray) -> dict[int, str]:
        """Returns index → detail of the reject, for each of the turns (row[i], turn[i]) to drop."""
        reasons = {key: why for key, why in self._reasons() if key[1] != WHOLE_ROW}
        candidates = np.flatnonzero(np.isin(row, [key[0] for key in reasons])).tolist()
        keys = ((i, (int(row[i]), int(turn[i]))) for i in candidates)
        return {i: reasons[key] for i, key in keys if key in reasons}

    def counts(self) -> dict[str, dict[str, int]]:
        """Returns, by benchmark, the number of distinct images of each kind, of questions and of affected rows."""
        counts = {}
        for name in self._names:
            mine = self.table.filter(pc.equal(self.table["benchmark"], name))
            by_kind = {kind: mine.filter(pc.equal(mine["kind"], kind)) for kind in KINDS}
            counts[name] = {
                **{kind: pc.count_distinct(by_kind[kind]["image"]).as_py() for kind in ("bytes", "perceptual")},
                "question": by_kind["question"].num_rows,
                "rows": pc.count_distinct(mine["row"]).as_py(),
            }
        return counts

    def _reasons(self) -> Iterator[tuple[tuple[int, int], str]]:
        for entry in reversed(self._dropped.to_pylist()):  # so that the first entry of a row wins in a dictionary
            where = f"{entry['benchmark']}, {entry['item']}"
            if entry["kind"] == "bytes":
                why = f"{entry['image']} is byte-identical to {where}"
            elif entry["kind"] == "perceptual":
                why = f"{entry['image']} looks like {where} ({entry['distance']} of 64 bits differ)"
            else:
                why = f"the question shares {entry['words']!r} with {where}"
            yield (entry["row"], entry["turn"]), why


class Benchmarks:
    """The loaded benchmarks of a recipe, to be compared with one partition after another."""

    def __init__(self, settings: Decontamination):
        self.settings = settings
        self._benchmarks = [_Benchmark(name, Path(directory), settings) for name, directory in settings.benchmarks]

    def nothing(self) -> Overlaps:
        """Returns an empty result."""
        return Overlaps(OVERLAPS.empty_table(), self.settings)

    def find(self, batch: pa.RecordBatch, task: str, images: pa.Table | None) -> Overlaps:
        """Returns the overlaps of a partition. Raises ValueError if images must be compared but `images` is None.

        batch: usable annotation rows, sorted; images: rows of schema IMAGES for every image that they name."""
        found: list[dict[str, Any]] = []
        if self.settings.images != "skip":
            if images is None:
                raise ValueError("there is no images table, so images cannot be compared")
            found += self._images(batch, images)
        if self.settings.words:
            found += self._questions(batch, task)
        found.sort(key=lambda entry: (entry["row"], entry["turn"], KINDS.index(entry["kind"])))
        return Overlaps(pa.Table.from_pylist(found, OVERLAPS), self.settings)

    def _images(self, batch: pa.RecordBatch, images: pa.Table) -> Iterator[dict[str, Any]]:
        rows, names = _images_of_rows(batch)
        distinct = pc.unique(names)
        facts = images.take(pc.index_in(distinct, value_set=images["image"].combine_chunks()))
        rows_of: dict[str, list[int]] = {}
        for benchmark in self._benchmarks:
            matches = benchmark.images(facts)
            if matches and not rows_of:
                for row, name in zip(rows.to_pylist(), names.to_pylist(), strict=True):
                    rows_of.setdefault(name, []).append(row)
            for match in matches:
                yield from (match | {"row": row, "turn": WHOLE_ROW} for row in rows_of[match["image"]])

    def _questions(self, batch: pa.RecordBatch, task: str) -> Iterator[dict[str, Any]]:
        rows, turns, texts = _questions_of_rows(batch, task)
        encoded = texts.dictionary_encode()
        distinct = Ngrams.of(encoded.dictionary, self.settings.words)
        indices_of: dict[int, list[int]] = {}
        for benchmark in self._benchmarks:
            shared = distinct.shared_with(benchmark.ngrams)
            if shared and not indices_of:
                for index, text in enumerate(encoded.indices.to_pylist()):
                    indices_of.setdefault(text, []).append(index)
            for mine, theirs, words in shared:
                match = {"benchmark": benchmark.name, "item": benchmark.question_items[theirs], "kind": "question"}
                for index in indices_of[mine]:
                    yield match | {"words": words, "row": int(rows[index]), "turn": int(turns[index])}


class _Benchmark:
    def __init__(self, name: str, directory: Path, settings: Decontamination):
        self.name = name
        table = read_table(directory / "pictures.arrow")
        self._items = table["item"].to_pylist()
        self._sha256 = table["sha256"].combine_chunks()
        hashed = table["phash"].is_valid().to_numpy() if settings.images == "perceptual" else np.zeros(len(table), bool)
        self._hashed = np.flatnonzero(hashed)
        self._phash = table["phash"].combine_chunks().take(pa.array(self._hashed)).to_numpy()
        self._distance = settings.distance
        questions = read_table(directory / "questions.arrow")
        self.question_items = questions["item"].to_pylist()
        self.ngrams = Ngrams.of(questions["question"].combine_chunks(), max(1, settings.words))

    def images(self, images: pa.Table) -> list[dict[str, Any]]:
        """Returns the images (rows of schema IMAGES) that are in this benchmark, each with its nearest item."""
        nearest: dict[int, tuple[int, int, str]] = {}  # image → distance, item, kind
        hashed = np.flatnonzero(images["phash"].is_valid().to_numpy())
        hashes = images["phash"].combine_chunks().take(pa.array(hashed)).to_numpy()
        for i, j, bits in zip(*near_pairs(hashes, self._phash, self._distance), strict=True):
            index, candidate = int(hashed[i]), (int(bits), int(self._hashed[j]), "perceptual")
            nearest[index] = min(nearest.get(index, candidate), candidate)
        same = pc.index_in(images["sha256"].combine_chunks(), value_set=self._sha256, skip_nulls=True)
        for index in np.flatnonzero(same.is_valid().to_numpy(zero_copy_only=False)).tolist():
            nearest[index] = (0, same[index].as_py(), "bytes")
        names = images["image"].take(pa.array(sorted(nearest), pa.int64())).to_pylist()
        return [
            {"image": name, "benchmark": self.name, "item": self._items[item], "kind": kind, "distance": distance}
            for name, (distance, item, kind) in zip(names, (nearest[p] for p in sorted(nearest)), strict=True)
        ]


def _images_of_rows(batch: pa.RecordBatch) -> tuple[pa.Array, pa.Array]:
    """Returns (row, image) for every image of every row: one entry per image, so a row may occur several times."""
    with_image = batch.filter(batch.column("image").is_valid())
    rows, images = [with_image.column("row")], [with_image.column("image")]
    if "more_images" in batch.schema.names:
        more = batch.column("more_images")
        rows.append(batch.column("row").take(pc.list_parent_indices(more)))
        images.append(pc.list_flatten(more))
    return pa.concat_arrays(rows), pa.concat_arrays(images)


def _questions_of_rows(batch: pa.RecordBatch, task: str) -> tuple[np.ndarray, np.ndarray, pa.Array]:
    """Returns (row, turn, text) of every question."""
    rows = batch.column("row").to_numpy()
    if task == "conversation":
        turns = batch.column("turns")
        parent = pc.list_parent_indices(turns).to_numpy()
        turn = np.arange(len(parent)) - np.searchsorted(parent, parent)
        return rows[parent], turn, turns.flatten().field("user")
    if task not in ASKING_FIELD:
        return rows[:0], rows[:0], pa.array([], pa.string())
    return rows, np.zeros(len(rows), np.int64), batch.column(ASKING_FIELD[task])
