"""Which training rows stand in a benchmark: by their pictures, or by words that a question shares with its questions.

A picture of a benchmark concerns the whole row, whatever is asked of it; a question only its turn. Not held against a
row are a question shorter than an n-gram ("Is there a dog?" is in every benchmark and in every dataset), and words that
a benchmark says in many of its questions ("Compare the average kinetic energies of the particles in each sample").
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.arrow_files import read_table
from pipelines.ledger import WHOLE_ROW
from pipelines.ngrams import Ngrams
from pipelines.perceptual import near_pairs
from pipelines.schema import OVERLAPS

VERSION = 1  # part of the key of examples: raise it when a change here, in ngrams.py or perceptual.py moves a decision
REASON = "benchmark"  # of the rejects
KINDS = ("bytes", "perceptual", "question")

# The texts that a row asks, by task. A caption asks nothing.
_ASKED = {"open_question": "question", "multiple_choice": "question", "referring": "phrase"}


@dataclass(frozen=True)
class Decontamination:
    """What is looked for, as plain values.

    benchmarks: (name, directory of build_benchmark_items). pictures: `exact` (same bytes), `perceptual` (these, or
    hashes at most `distance` bits apart) or `skip`. words: length of an n-gram; 0: questions are not compared.
    action: `drop` what is found, or only `report` it.
    """

    benchmarks: tuple[tuple[str, str], ...]
    pictures: str
    distance: int
    words: int
    action: str

    def key(self) -> dict[str, Any]:
        """What examples depend on. Two places with the same content are the same benchmark."""
        return {
            "version": VERSION,
            "benchmarks": [[name, Path(directory).name] for name, directory in self.benchmarks],
            "pictures": self.pictures,
            "distance": self.distance if self.pictures == "perceptual" else None,
            "words": self.words,
            "action": self.action,
        }


class Overlaps:
    """Rows of one partition that stand in a benchmark. `table`: schema OVERLAPS, sorted by row."""

    def __init__(self, table: pa.Table, settings: Decontamination):
        self.table = table
        self._dropped = table if settings.action == "drop" else table.slice(0, 0)
        self._names = [name for name, _ in settings.benchmarks]

    def rows(self) -> dict[int, str]:
        """Each row that must go, and why."""
        return {row: why for (row, turn), why in self._reasons() if turn == WHOLE_ROW}

    def turns(self, row: np.ndarray, turn: np.ndarray) -> dict[int, str]:
        """Of the turns at (row, turn), the place of each that must go, and why."""
        reasons = {place: why for place, why in self._reasons() if place[1] != WHOLE_ROW}
        candidates = np.flatnonzero(np.isin(row, [place[0] for place in reasons])).tolist()
        places = ((i, (int(row[i]), int(turn[i]))) for i in candidates)
        return {i: reasons[place] for i, place in places if place in reasons}

    def counts(self) -> dict[str, dict[str, int]]:
        """By benchmark: distinct pictures of each kind, questions, and the rows that they concern."""
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
        for entry in reversed(self._dropped.to_pylist()):  # so that the first of a row wins in a dictionary
            where = f"{entry['benchmark']}, {entry['item']}"
            if entry["kind"] == "bytes":
                why = f"{entry['image']} has the bytes of {where}"
            elif entry["kind"] == "perceptual":
                why = f"{entry['image']} looks like {where} ({entry['distance']} of 64 bits differ)"
            else:
                why = f"the question shares {entry['words']!r} with {where}"
            yield (entry["row"], entry["turn"]), why


class Benchmarks:
    """The benchmarks of a recipe, loaded: looked for in one partition after another."""

    def __init__(self, settings: Decontamination):
        self.settings = settings
        self._benchmarks = [_Benchmark(name, Path(directory), settings) for name, directory in settings.benchmarks]

    def nothing(self) -> Overlaps:
        return Overlaps(OVERLAPS.empty_table(), self.settings)

    def find(self, batch: pa.RecordBatch, task: str, images: pa.Table | None) -> Overlaps:
        """batch: usable annotation rows, sorted; images: the measures of every image that they name."""
        found: list[dict[str, Any]] = []
        if self.settings.pictures != "skip":
            if images is None:
                raise ValueError("no images table: pictures cannot be compared")
            found += self._pictures(batch, images)
        if self.settings.words:
            found += self._questions(batch, task)
        found.sort(key=lambda entry: (entry["row"], entry["turn"], KINDS.index(entry["kind"])))
        return Overlaps(pa.Table.from_pylist(found, OVERLAPS), self.settings)

    def _pictures(self, batch: pa.RecordBatch, images: pa.Table) -> Iterator[dict[str, Any]]:
        rows, names = _pictures_of_rows(batch)
        distinct = pc.unique(names)
        facts = images.take(pc.index_in(distinct, value_set=images["image"].combine_chunks()))
        rows_of: dict[str, list[int]] = {}
        for benchmark in self._benchmarks:
            matches = benchmark.pictures(facts)
            if matches and not rows_of:
                for row, name in zip(rows.to_pylist(), names.to_pylist(), strict=True):
                    rows_of.setdefault(name, []).append(row)
            for match in matches:
                yield from (match | {"row": row, "turn": WHOLE_ROW} for row in rows_of[match["image"]])

    def _questions(self, batch: pa.RecordBatch, task: str) -> Iterator[dict[str, Any]]:
        rows, turns, texts = _asked(batch, task)
        numbers = texts.dictionary_encode()
        asked = Ngrams.of(numbers.dictionary, self.settings.words)
        places_of: dict[int, list[int]] = {}
        for benchmark in self._benchmarks:
            shared = asked.shared_with(benchmark.asked)
            if shared and not places_of:
                for place, number in enumerate(numbers.indices.to_pylist()):
                    places_of.setdefault(number, []).append(place)
            for mine, theirs, words in shared:
                match = {"benchmark": benchmark.name, "item": benchmark.asking[theirs], "kind": "question"}
                for place in places_of[mine]:
                    yield match | {"words": words, "row": int(rows[place]), "turn": int(turns[place])}


class _Benchmark:
    def __init__(self, name: str, directory: Path, settings: Decontamination):
        self.name = name
        table = read_table(directory / "pictures.arrow")
        self._items = table["item"].to_pylist()
        self._sha256 = table["sha256"].combine_chunks()
        hashed = (
            table["phash"].is_valid().to_numpy() if settings.pictures == "perceptual" else np.zeros(len(table), bool)
        )
        self._hashed = np.flatnonzero(hashed)
        self._phash = table["phash"].combine_chunks().take(pa.array(self._hashed)).to_numpy()
        self._distance = settings.distance
        questions = read_table(directory / "questions.arrow")
        self.asking = questions["item"].to_pylist()
        self.asked = Ngrams.of(questions["question"].combine_chunks(), max(1, settings.words))

    def pictures(self, images: pa.Table) -> list[dict[str, Any]]:
        """The images (rows of schema IMAGES) that stand in this benchmark, each with the item that is nearest."""
        nearest: dict[int, tuple[int, int, str]] = {}  # image → distance, item, kind
        hashed = np.flatnonzero(images["phash"].is_valid().to_numpy())
        hashes = images["phash"].combine_chunks().take(pa.array(hashed)).to_numpy()
        for i, j, bits in zip(*near_pairs(hashes, self._phash, self._distance), strict=True):
            place, candidate = int(hashed[i]), (int(bits), int(self._hashed[j]), "perceptual")
            nearest[place] = min(nearest.get(place, candidate), candidate)
        same = pc.index_in(images["sha256"].combine_chunks(), value_set=self._sha256, skip_nulls=True)
        for place in np.flatnonzero(same.is_valid().to_numpy(zero_copy_only=False)).tolist():
            nearest[place] = (0, same[place].as_py(), "bytes")
        names = images["image"].take(pa.array(sorted(nearest), pa.int64())).to_pylist()
        return [
            {"image": name, "benchmark": self.name, "item": self._items[item], "kind": kind, "distance": distance}
            for name, (distance, item, kind) in zip(names, (nearest[p] for p in sorted(nearest)), strict=True)
        ]


def _pictures_of_rows(batch: pa.RecordBatch) -> tuple[pa.Array, pa.Array]:
    """(row, image) of every picture of every row: a row with several pictures stands there several times."""
    shown = batch.filter(batch.column("image").is_valid())
    rows, images = [shown.column("row")], [shown.column("image")]
    if "more_images" in batch.schema.names:
        more = batch.column("more_images")
        rows.append(batch.column("row").take(pc.list_parent_indices(more)))
        images.append(pc.list_flatten(more))
    return pa.concat_arrays(rows), pa.concat_arrays(images)


def _asked(batch: pa.RecordBatch, task: str) -> tuple[np.ndarray, np.ndarray, pa.Array]:
    """(row, turn, text) of every question."""
    rows = batch.column("row").to_numpy()
    if task == "conversation":
        turns = batch.column("turns")
        parent = pc.list_parent_indices(turns).to_numpy()
        number = np.arange(len(parent)) - np.searchsorted(parent, parent)
        return rows[parent], number, turns.flatten().field("user")
    if task not in _ASKED:
        return rows[:0], rows[:0], pa.array([], pa.string())
    return rows, np.zeros(len(rows), np.int64), batch.column(_ASKED[task])
