"""Compares the scores of runs with each other and with the scores published in the paper."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from flows.report.score_tables import measures
from flows.runs.find import RunError, find_run
from model.evaluation.paper_columns import COLUMNS, summary
from pipelines.core.text_tables import Row

PAPER: Mapping[str, Mapping[str, float]] = yaml.safe_load(Path(__file__).with_name("paper_scores.yaml").read_text())


def read_scores(run: str) -> tuple[str, dict[str, Any]]:
    """Returns RECIPE/RUN_ID and the content of the run's scores.json. run: as for find_run. Raises RunError."""
    directory = find_run(run)
    path = directory / "scores.json"
    name = f"{directory.parent.name}/{directory.name}"
    if not path.is_file():
        raise RunError(f"{name} has no scores.json: the run is not finished, or its recipe lists no benchmarks")
    try:
        scores = json.loads(path.read_bytes(), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise RunError(f"{path} is not a valid JSON file ({error}): evaluate the model again") from None
    if not isinstance(scores, dict) or not all(isinstance(entry, dict) for entry in scores.values()):
        raise RunError(f"{path} must be a JSON object that maps benchmarks to scores: evaluate the model again")
    return name, scores


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not a valid score")


def read_runs(runs: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """Calls read_scores for each run. Raises RunError if two runs are the same or have the same name."""
    found = [read_scores(run) for run in runs]
    names = [name for name, _ in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise RunError(f"{', '.join(twice)}: give each run only once")
    return found


def columns(runs: Sequence[tuple[str, Mapping[str, Any]]], paper: bool = True) -> list[Row]:
    """Returns a row for each run and, with `paper`, for each model of the paper. Columns without a score are omitted.

    A score is followed by its maximum where that differs from the benchmark's, e.g. for MME without some of its tasks.
    """
    found = {name: summary(scores) for name, scores in runs}
    shown = [column for column in COLUMNS if any(column.name in each["columns"] for each in found.values())]
    rows: list[Row] = []
    for name, each in found.items():
        read = each["columns"]
        row: Row = {"model": name, **{column.name: "" for column in shown}}
        row |= {column.name: column.show(**read[column.name]) for column in shown if column.name in read}
        average, spatial = each["average"], each["spatial"]["average"]
        if len(average["over"]) > 1:  # the mean of one benchmark adds nothing
            row["Avg^N"] = f"{average['value']:.1f} ({', '.join(average['over'])})"
        if spatial is not None:
            row["spatial"] = f"{spatial:.1f}"
        rows.append(row)
    for name, scores in PAPER.items() if paper else ():
        own = {c.name: f"{scores[c.name]:.1f}" if c.name in scores else "" for c in shown}
        rows.append({"model": f"paper, {name}", **own})
    filled = [key for key in ("Avg^N", "spatial") if any(key in row for row in rows)]
    return [{**row, **{key: row.get(key, "") for key in filled}} for row in rows]


def details(runs: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Row]:
    """Returns a row for each measure of each benchmark and its parts, with a column for each run; for two runs, also
    their difference."""
    of_run = {
        name: {
            (benchmark, *key): value
            for benchmark, entry in scores.items()
            for key, value in measures(benchmark, entry, every=True).items()
        }
        for name, scores in runs
    }
    rows: list[Row] = []
    for key in dict.fromkeys(key for found in of_run.values() for key in found):
        values = [found.get(key) for found in of_run.values()]
        row: Row = dict(zip(("benchmark", "part", "measure"), key, strict=True))
        row |= {name: "" if v is None else f"{v:.1f}" for name, v in zip(of_run, values, strict=True)}
        if len(values) == 2:
            a, b = values
            row["difference"] = "" if a is None or b is None else f"{b - a:+.1f}"
        rows.append(row)
    return rows
