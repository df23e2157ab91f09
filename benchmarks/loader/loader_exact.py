"""The exactness test, the same for every loader: does a resumed run train on the same data as an uninterrupted run?

Each run is recorded as units (samples, or packs as lists of samples) of each rank, in fresh processes. A global batch
is GLOBAL_BATCH units over all ranks. A resume is exact if every global batch after it has the same units as in the
uninterrupted run, and in the same order unless the number of ranks changed.
"""

import functools
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.loader.loader_run import Contender, Refused, run_ranks

SAMPLES = 1600
GLOBAL_BATCH = {False: 32, True: 8}  # samples; with packing, packs
STEPS = 40
STOPS = (7, 23, 34)  # steps
MARGIN = 2  # steps at the end, in which a missing sample may only be late
WORKERS = {1: 2, 2: 1}  # of each rank; energon requires a constant total
MICRO = {False: 8, True: 2}  # units of a batch; energon requires that ranks × workers × this divides the global batch

Unit = list[int]


@dataclass(frozen=True)
class Case:
    title: str
    packing: bool
    ranks: int
    resumed_ranks: int
    resumed_workers: int


CASES = [
    Case("same again", False, 1, 1, 2),
    Case("2 workers → 1", False, 1, 1, 1),
    Case("ranks 1 → 2, same workers in total", False, 1, 2, 1),
    Case("ranks 2 → 1, same workers", False, 2, 1, 2),
    Case("ranks and workers × 2", False, 1, 2, 2),
    Case("packing, same again", True, 1, 1, 2),
    Case("packing, 2 workers → 1", True, 1, 1, 1),
    Case("packing, ranks 1 → 2, same workers", True, 1, 2, 1),
    Case("packing, ranks 2 → 1, same workers", True, 2, 1, 2),
    Case("packing, ranks and workers × 2", True, 1, 2, 2),
]


def exactness(contenders: list[Contender], folder: Path, toy: bool = False) -> tuple[list[dict[str, str]], list[str]]:
    """The rows of the table, and the errors of the loaders that refuse. toy: only one case and one stop."""
    rows, messages = [], []
    for contender in contenders:
        stops = STOPS[:1] if toy else STOPS
        recorder = Recorder(contender, folder / "exact" / contender.slug, stops, stops[-1] + 2 if toy else STEPS)
        row = {"loader": contender.name}
        cells = {} if toy else {"two runs are the same": recorder.alike}
        cases = [case for case in CASES if case.packing][:1] if toy else CASES
        cells |= {case.title: functools.partial(recorder.worst, case) for case in cases}
        for title, cell in cells.items():
            try:
                row[title] = cell()
            except Refused as error:
                row[title] = "not offered" if "not offered" in str(error) else "refuses"
                messages.append(f"{contender.name}: {error}")
        print(json.dumps(row, ensure_ascii=False), flush=True)
        rows.append(row)
    return rows, list(dict.fromkeys(messages))


class Recorder:
    def __init__(self, contender: Contender, folder: Path, stops: Sequence[int], steps: int):
        self.contender, self.folder, self.stops, self.steps = contender, folder, stops, steps
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    def alike(self) -> str:
        return "yes" if self.whole(False, 1) == self._run(False, 1, WORKERS[1], self.steps) else "no"

    @functools.cache  # noqa: B019 (the object exists as long as the program runs)
    def whole(self, packing: bool, ranks: int) -> list[Unit]:
        """The uninterrupted run, which saves its states as training saves checkpoints."""
        saves = {self._state(packing, ranks, stop): stop * GLOBAL_BATCH[packing] // ranks for stop in self.stops}
        return self._run(packing, ranks, WORKERS[ranks], self.steps, saves=saves)

    def worst(self, case: Case) -> str:
        whole = self.whole(case.packing, case.ranks)
        size = GLOBAL_BATCH[case.packing]
        verdicts = []
        for stop in self.stops:
            options = {"load": self._state(case.packing, case.ranks, stop), "skip": stop * size // case.resumed_ranks}
            after = self._run(case.packing, case.resumed_ranks, case.resumed_workers, self.steps - stop, **options)
            ordered = case.ranks == case.resumed_ranks
            verdicts.append(verdict(whole[: stop * size], whole[stop * size :], after, size, ordered))
        return max(verdicts)[1]

    def _state(self, packing: bool, ranks: int, stop: int) -> str:
        return str(self.folder / f"state-{packing}-{ranks}-{stop}")

    def _run(self, packing: bool, ranks: int, workers: int, steps: int, **options: Any) -> list[Unit]:
        own = GLOBAL_BATCH[packing] // ranks
        batches = {"batch": MICRO[packing], "global_batch": GLOBAL_BATCH[packing], "packing": packing}
        setup = {"samples": SAMPLES, "workers": workers, "decode": "none", **batches}
        got = run_ranks(self.contender, ranks, setup, {"units": own * steps, **options}, self.folder / "trace")
        steps_of_all = [[units[at : at + own] for units in got] for at in range(0, own * steps, own)]
        return [unit for step in steps_of_all for part in step for unit in part]


def verdict(before: list[Unit], rest: list[Unit], after: list[Unit], size: int, ordered: bool) -> tuple[int, str]:
    """Returns how bad the resume is, as a number and as a message. size: of a global batch."""

    def batches(units: list[Unit]) -> list[list[Unit]]:
        return [sorted(units[at : at + size]) for at in range(0, len(units), size)]

    if after == rest or (not ordered and batches(after) == batches(rest)):
        return 0, "exact"
    wanted, got, seen = _samples(rest[: -MARGIN * size]), _samples(after), _samples(before)
    lost = sum((wanted - got).values())
    repeated = sum(count if seen[name] else count - 1 for name, count in got.items())
    if not lost and not repeated:
        return 1, "other order"
    words = [f"loses {lost}"] * (lost > 0) + [f"repeats {repeated}"] * (repeated > 0)
    return 1 + lost + repeated, f"{', '.join(words)} of {sum(_samples(rest).values())}"


def _samples(units: Iterable[Unit]) -> Counter[int]:
    return Counter(name for unit in units for name in unit)
