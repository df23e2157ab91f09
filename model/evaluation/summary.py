"""The paper's columns from a model's scores: one number for each benchmark, Avg^N, and the spatial tasks.

Avg^N (paper, section 5): the mean over benchmarks of a score divided by the most it could be. Spatial tasks (paper,
Table 3): six of MME, MMBench and SEED-Bench, each in percent, and their mean.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Scores = Mapping[str, Any]  # benchmark → its scores


@dataclass(frozen=True)
class Column:
    """One number. path: where it stands in the benchmark's scores; of: the most it can be, a number or its place."""

    name: str
    benchmark: str
    path: tuple[str, ...]
    of: float | tuple[str, ...] = 100.0
    usual: float = 100.0  # the most it can be in the whole benchmark

    def read(self, scores: Scores) -> tuple[float, float] | None:
        """(value, the most it could be), or None where the scores do not have it."""
        value = _at(scores.get(self.benchmark), self.path)
        most = _at(scores.get(self.benchmark), self.of) if isinstance(self.of, tuple) else self.of
        return None if value is None or not most else (value, most)

    def show(self, value: float, of: float) -> str:
        return f"{value:.1f}" if of == self.usual else f"{value:.1f} of {of:g}"


COLUMNS = (
    Column("MMB", "mmbench", ("circular",)),
    Column("MME", "mme", ("total",), ("total_of",), 2800.0),
    Column("MME^P", "mme", ("perception",), ("perception_of",), 2000.0),
    Column("SEED^I", "seed_bench", ("accuracy",)),
    Column("LLaVA^W", "llava_bench", ("score",)),
    Column("SQA", "scienceqa", ("accuracy_image",)),
    Column("MM-Vet", "mm_vet", ("score",)),
    Column("MMMU", "mmmu", ("accuracy",)),
    Column("POPE", "pope", ("f1",)),
)
AVERAGED = ("MMB", "MME^P", "SEED^I", "LLaVA^W")
SPATIAL = (
    Column("MME position", "mme", ("tasks", "position", "score"), 200.0),
    Column("MMB spatial relationship", "mmbench", ("categories", "spatial_relationship", "circular")),
    Column("MMB object localization", "mmbench", ("categories", "object_localization", "circular")),
    Column("MMB physical relation", "mmbench", ("categories", "physical_relation", "circular")),
    Column("SEED spatial relation", "seed_bench", ("dimensions", "spatial_relation", "accuracy")),
    Column("SEED instance location", "seed_bench", ("dimensions", "instance_location", "accuracy")),
)


def summary(scores: Scores) -> dict[str, Any]:
    """{"columns": {name: {"value", "of"}}, "average": {"value", "over"}, "spatial": {"tasks": {name: percent},
    "average"}}.

    What the scores lack is left out. The average names what it is over, None where that is nothing; the spatial one is
    None unless all six are there, for nobody reports fewer.
    """
    read = {column.name: found for column in COLUMNS if (found := column.read(scores))}
    over = [name for name in AVERAGED if name in read]
    shares = [100 * read[name][0] / read[name][1] for name in over]
    tasks = {column.name: 100 * found[0] / found[1] for column in SPATIAL if (found := column.read(scores))}
    whole = len(tasks) == len(SPATIAL)
    return {
        "columns": {name: {"value": value, "of": most} for name, (value, most) in read.items()},
        "average": {"value": sum(shares) / len(shares) if shares else None, "over": over},
        "spatial": {"tasks": tasks, "average": sum(tasks.values()) / len(tasks) if whole else None},
    }


def _at(entry: Any, path: tuple[str, ...]) -> float | None:
    for key in path:
        entry = entry.get(key) if isinstance(entry, Mapping) else None
    return float(entry) if isinstance(entry, int | float) and not isinstance(entry, bool) else None
