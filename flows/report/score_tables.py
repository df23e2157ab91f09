"""Tables of scores."""

from collections.abc import Mapping
from typing import Any

from pipelines.core.text_tables import Row

NO_BENCHMARKS = ("shuffled", "settings")  # keys of scores.json that are not benchmarks
MAIN = ("score", "accuracy")  # the main measure of a part of a benchmark, in order of preference
BARE = "capabilities"  # MM-Vet's groups, whose values are plain numbers


def scores(summary: Mapping[str, Any], every: bool = False, decimals: int = 1) -> list[Row]:
    """Returns scores.json as rows: each benchmark's scores, in total and by group, next to those of the shuffled-image
    control. every: show all measures of a group instead of only its main one."""
    control = summary.get("shuffled", {})
    rows: list[Row] = []
    for benchmark, entry in summary.items():
        shuffled = measures(benchmark, control.get(benchmark, {}), every)
        for (part, measure), value in measures(benchmark, entry, every).items():
            row = {"benchmark": benchmark, "part": part, "measure": measure, "score": f"{value:.{decimals}f}"}
            if control:
                row["shuffled images"] = (
                    f"{shuffled[part, measure]:.{decimals}f}" if (part, measure) in shuffled else ""
                )
            rows.append(row)
    return rows


def measures(benchmark: str, entry: Mapping[str, Any], every: bool = False) -> dict[tuple[str, str], float]:
    """Returns (part, measure) → value for one benchmark in scores.json: all measures in total, and of each group the
    main measure or, with `every`, all."""
    if benchmark in NO_BENCHMARKS:
        return {}
    found = {("all", measure): value for measure, value in entry.items() if isinstance(value, float)}
    for name, groups in entry.items():
        for part, values in groups.items() if isinstance(groups, dict) else ():
            if name == BARE:
                values = {"score": values}
            known = {k: v for k, v in values.items() if isinstance(v, float)} if isinstance(values, dict) else {}
            main = [key for key in MAIN if key in known][:1]
            found |= {(part, key): known[key] for key in (known if every and main else main)}
    return found
