"""Writes a run's results directory, with links, scores, galleries and report.md, and publishes the UI artifacts."""

from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from flows.data.stage_data import StageData
from flows.recipe.recipe import Recipe
from flows.report import charts, data_tables, duplicates, gallery, overlaps
from flows.report.artifacts import publish_curve, publish_report
from flows.report.score_report import write_scores
from flows.runs.results import Results
from flows.runs.workspace import Workspace
from pipelines.core import text_tables

CARDS = 4  # gallery cards per dataset
DUPLICATES = 10  # duplicates per dataset


@task(name="report", task_run_name="report", cache_policy=NO_CACHE)
def write_report(
    workspace: Workspace, results: Results, data: dict[str, StageData], stages: dict[str, Path], scores: Path | None
) -> dict[str, Any]:
    """Writes the report of a complete run; returns the content of scores.json. data: stage → its data. stages: stage →
    its training directory in the store. scores: the evaluation's directory, or None without benchmarks."""
    recipe = workspace.recipe
    if scores:
        summary, section = write_scores(workspace, results, scores)
    else:
        summary, section = {}, "## Scores\n\nThe recipe lists no benchmarks.\n"
        results.write("scores.json", "{}\n")
    curve = charts.loss_curve({stage: directory / "work" / "metrics.jsonl" for stage, directory in stages.items()})
    results.link("model", stages["finetune"] / "output")
    results.write("report/loss.png", curve)
    parts = [
        f"# {recipe.name}, run {results.run_id}\n",
        "Recipe: [recipe.yaml](recipe.yaml) · Model: [model](model) · "
        "All benchmark answers: [predictions](predictions)\n",
        section,
        "## Training\n\n![loss and learning rate](report/loss.png)\n",
        *_data_sections(recipe, results, data),
    ]
    locations = [{"stage": stage, "directory": path} for stage, path in stages.items()]
    parts.append(f"## Weights, checkpoints and metrics\n\n{text_tables.markdown(locations)}")
    publish_curve(recipe.name, curve)
    publish_report(recipe.name, "results", results.write("report.md", "\n".join(parts)))
    results.announce()
    return summary


@task(name="data report", task_run_name="data report", cache_policy=NO_CACHE)
def write_data_report(recipe: Recipe, results: Results, data: dict[str, StageData]) -> None:
    """Writes the report of a run that only builds data."""
    head = f"# {recipe.name}, run {results.run_id}, data only\n\nRecipe: [recipe.yaml](recipe.yaml)\n"
    report = results.write("report.md", "\n".join([head, *_data_sections(recipe, results, data)]))
    publish_report(recipe.name, "data results", report)
    results.announce("latest-build")


def _data_sections(recipe: Recipe, results: Results, data: dict[str, StageData]) -> list[str]:
    """Creates the links and galleries of the data; returns the sections of report.md about it."""
    parts = []
    for stage, built in data.items():
        results.link(f"data/{stage}", built.shards)
        _write_gallery(results, stage, built.shards)
        parts += [
            f"## Data of {stage}\n\n[data/{stage}](data/{stage}) · [gallery](gallery-{stage}.md)\n",
            f"{data_tables.balance(recipe.stage(stage).data.balance.model_dump())}\n",
            text_tables.markdown(data_tables.mixture(built.shards, recipe.model.projector.num_tokens)),
            f"### Rows without an example\n\n{text_tables.markdown(data_tables.losses(built.examples))}",
            "### Most surprising duplicates\n\n"
            f"{text_tables.markdown(duplicates.most_surprising(built.examples, DUPLICATES))}",
        ]
        if overlaps.looked_for(built.examples):
            summary = text_tables.markdown(overlaps.summary(built.examples))
            first = overlaps.listing(built.examples, overlaps.EXAMPLES)
            more = f"\n{text_tables.markdown(first)}" if first else ""
            parts.append(f"### Overlap with benchmarks\n\n{summary}{more}")
    return parts


def _write_gallery(results: Results, stage: str, shards: Path) -> None:
    def address(number: int, png: bytes) -> str:
        name = f"report/{stage}-{number:03d}.png"
        results.write(name, png)
        return name

    text = gallery.markdown(gallery.cards(shards, CARDS), address)
    results.write(f"gallery-{stage}.md", f"# First samples of each dataset in {stage}\n\n{text}")
