"""The exactness test, the same for every loader: is what a resumed run trains on what the unbroken run would have?

Each run is recorded as units (samples, or packs as lists of samples) of each rank, in fresh processes. A global batch
is GLOBAL_BATCH units over all ranks. A resume is exact if every global batch after it has the units that it has in the
unbroken run; in their order, unless the number of ranks changed.
"""

import functools
import json
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loader_run import Contender, Refused, run_ranks
from measure import markdown

SAMPLES = 1600
GLOBAL_BATCH = {False: 32, True: 8}  # samples; with packing, packs
STEPS = 40
STOPS = (7, 23, 34)  # steps
MARGIN = 2  # steps at the end, in which a sample that is missing may only come a little later
WORKERS = {1: 2, 2: 1}  # of each rank: in all as many, which energon asks for
MICRO = {False: 8, True: 2}  # units of a batch: energon asks that ranks × workers × this divide the global batch

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
    Case("other workers, 2 → 1", False, 1, 1, 1),
    Case("ranks 1 → 2, workers in all as many", False, 1, 2, 1),
    Case("ranks 2 → 1, as many", False, 2, 1, 2),
    Case("ranks and workers × 2", False, 1, 2, 2),
    Case("packing, same again", True, 1, 1, 2),
    Case("packing, other workers", True, 1, 1, 1),
    Case("packing, ranks 1 → 2, as many", True, 1, 2, 1),
    Case("packing, ranks 2 → 1, as many", True, 2, 1, 2),
    Case("packing, ranks and workers × 2", True, 1, 2, 2),
]


def exactness(contenders: list[Contender], folder: Path) -> str:
    """The table, and under it what those that refuse say."""
    rows, messages = [], []
    for contender in contenders:
        recorder = Recorder(contender, folder / "exact" / contender.script.stem)
        row = {"loader": contender.name}
        cells = {"two runs alike": recorder.alike}
        cells |= {case.title: functools.partial(recorder.worst, case) for case in CASES}
        for title, cell in cells.items():
            try:
                row[title] = cell()
            except Refused as error:
                row[title] = "not offered" if "not offered" in str(error) else "refuses"
                messages.append(f"{contender.name}: {error}")
        print(json.dumps(row, ensure_ascii=False), flush=True)
        rows.append(row)
    return "\n".join([markdown(rows), "", *dict.fromkeys(messages)])


class Recorder:
    def __init__(self, contender: Contender, folder: Path):
        self.contender, self.folder = contender, folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    def alike(self) -> str:
        return "yes" if self.whole(False, 1) == self._run(False, 1, WORKERS[1], STEPS) else "no"

    @functools.cache  # noqa: B019 (lives as long as the program)
    def whole(self, packing: bool, ranks: int) -> list[Unit]:
        """The unbroken run, which leaves its states behind as training leaves checkpoints."""
        saves = {self._state(packing, ranks, stop): stop * GLOBAL_BATCH[packing] // ranks for stop in STOPS}
        return self._run(packing, ranks, WORKERS[ranks], STEPS, saves=saves)

    def worst(self, case: Case) -> str:
        whole = self.whole(case.packing, case.ranks)
        size = GLOBAL_BATCH[case.packing]
        verdicts = []
        for stop in STOPS:
            options = {"load": self._state(case.packing, case.ranks, stop), "skip": stop * size // case.resumed_ranks}
            after = self._run(case.packing, case.resumed_ranks, case.resumed_workers, STEPS - stop, **options)
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
    """(how bad, in words). size: of a global batch."""

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
