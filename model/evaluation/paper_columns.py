"""Derives the paper's table columns from a model's scores: one value per benchmark, Avg^N and the spatial tasks.

Avg^N (paper, section 5): the mean over benchmarks of the score divided by its maximum. Spatial tasks (paper, Table 3):
six tasks of MME, MMBench and SEED-Bench, each in percent, and their mean.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Scores = Mapping[str, Any]  # benchmark → its scores


@dataclass(frozen=True)
class Column:
    """One column. path: the keys of its value in the benchmark's scores; of: its maximum, as a number or as keys."""

    name: str
    benchmark: str
    path: tuple[str, ...]
    of: float | tuple[str, ...] = 100.0
    usual: float = 100.0  # the maximum in the complete benchmark

    def read(self, scores: Scores) -> tuple[float, float] | None:
        """Returns (value, maximum), or None if the scores do not contain them."""
        value = _at(scores.get(self.benchmark), self.path)
        maximum = _at(scores.get(self.benchmark), self.of) if isinstance(self.of, tuple) else self.of
        return None if value is None or not maximum else (value, maximum)

    def show(self, value: float, of: float) -> str:
        return f"{value:.1f}" if of == self.usual else f"{value:.1f} of {of:g}"


COLUMNS = (
    Column("MMB", "mmbench", ("circular",)),
    Column("MME", "mme", ("total",), ("total_of",), 2800.0),
    Column("MME^P", "mme", ("perception",), ("perception_of",), 2000.0),
    Column("SEED^I", "seed_bench", ("accuracy",)),
    Column("LLaVA^W", "llava_bench", ("score",)),
    Column("SQA", "scienceqa", ("accuracy",)),  # all questions, as in the authors' evaluation
    Column("SQA^I", "scienceqa", ("accuracy_image",)),  # those with an image, as other papers report it
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
    """Returns {"columns": {name: {"value", "of"}}, "average": {"value", "over"}, "spatial": {"tasks": {name: percent},
    "average"}}.

    Values that the scores lack are omitted. "over" lists the columns of the average, which is None if there are none.
    The spatial average is None unless all six tasks are present, because published averages cover all six.
    """
    read = {column.name: found for column in COLUMNS if (found := column.read(scores))}
    over = [name for name in AVERAGED if name in read]
    normalised = [100 * read[name][0] / read[name][1] for name in over]
    tasks = {column.name: 100 * found[0] / found[1] for column in SPATIAL if (found := column.read(scores))}
    complete = len(tasks) == len(SPATIAL)
    return {
        "columns": {name: {"value": value, "of": maximum} for name, (value, maximum) in read.items()},
        "average": {"value": sum(normalised) / len(normalised) if normalised else None, "over": over},
        "spatial": {"tasks": tasks, "average": sum(tasks.values()) / len(tasks) if complete else None},
    }


def _at(entry: Any, path: tuple[str, ...]) -> float | None:
    for key in path:
        entry = entry.get(key) if isinstance(entry, Mapping) else None
    return float(entry) if isinstance(entry, int | float) and not isinstance(entry, bool) else None
