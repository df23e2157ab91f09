"""Writes the scores section of a report: tables, bar chart, pages of mistakes and the history of earlier runs."""

import json
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flows.report import charts, mistakes, score_comparison, score_tables
from flows.report.artifacts import publish_scores
from flows.runs.find import RunError
from flows.runs.results import LATEST, Results
from flows.runs.workspace import Workspace
from model.evaluation.paper_columns import summary
from pipelines.core import text_tables
from pipelines.core.text_tables import Row

HISTORY = 20  # number of runs
log = logging.getLogger(__name__)


def write_scores(workspace: Workspace, results: Results, scores: Path) -> tuple[dict[str, Any], str]:
    """Writes scores.json, the bar chart and the pages of mistakes to a run's directory, and publishes the scores.

    scores: the directory of an evaluation. Returns the content of scores.json and the report's section.
    """
    recipe = workspace.recipe
    text = (scores / "scores.json").read_text()
    found = json.loads(text)
    results.link("predictions", scores)
    results.write("scores.json", text)
    of_model, of_control = summary(found), summary(found.get("shuffled", {}))
    pages = mistakes.write_pages(workspace, scores, results)
    own = [(f"{recipe.name}/{results.run_id}", found)]
    parts = [f"## Scores\n\n{text_tables.markdown(score_comparison.columns(own, paper=False))}"]
    bars = None
    if of_model["columns"]:
        bars = charts.score_bars(of_model["columns"], of_control["columns"])
        results.write("report/scores.png", bars)
        parts.append("![scores](report/scores.png)\n")
    if pages:
        links = " · ".join(f"[{name}]({page})" for name, page in pages.items())
        parts.append(f"Mistakes, with their images: {links}\n")
    parts.append(text_tables.markdown(score_tables.scores(found)))
    publish_scores(recipe.name, score_tables.scores(found), history(results.directory.parent), bars)
    return found, "\n".join(parts)


def history(runs: Path) -> list[Row]:
    """Returns the main scores of a recipe's runs, newest first; runs without scores are omitted."""
    found = []
    for path in runs.glob("*/scores.json"):
        if path.parent.name in LATEST:
            continue
        try:
            _, scores = score_comparison.read_scores(str(path.parent))
        except RunError as error:  # a damaged old run must not fail this one
            log.warning("omitted from the score history: %s", error)
            continue
        if summary(scores)["columns"]:
            found.append((path.stat().st_mtime, path.parent.name, scores))
    newest = sorted(found, reverse=True, key=lambda each: each[:2])[:HISTORY]
    rows = score_comparison.columns([(name, scores) for _, name, scores in newest], paper=False)
    times = [f"{datetime.fromtimestamp(when, UTC):%Y-%m-%d %H:%M}" for when, _, _ in newest]
    return [{"run": row.pop("model"), "time (UTC)": when, **row} for when, row in zip(times, rows, strict=True)]
