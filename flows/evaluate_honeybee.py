"""Evaluates a model on the recipe's benchmarks in separate processes, and provides a flow for any model directory."""

from typing import Any

from prefect import flow, get_run_logger

from flows.preflight.check import check_benchmarks
from flows.preflight.surroundings import check_hosts
from flows.recipe.recipe import load_recipe
from flows.report.artifacts import publish_report
from flows.report.score_report import write_scores
from flows.runs.find import find_model
from flows.runs.results import Results, new_run_id
from flows.runs.workspace import open_workspace
from flows.tasks.evaluation import evaluate
from model.check_directory import check_model


@flow(name="evaluate-honeybee", flow_run_name="{recipe} {model}")
def evaluate_honeybee(
    model: str, recipe: str = "sample", benchmarks: list[str] | None = None, run_id: str | None = None
) -> dict[str, Any]:
    """Evaluates a model directory on benchmarks of a recipe (all of them by default) and returns the scores.

    run_id: name of the results directory under runs/RECIPE/; default: evaluation-TIME.
    """
    log = get_run_logger().info
    parsed = load_recipe(recipe).with_benchmarks(benchmarks)
    check_hosts(parsed, log)
    workspace = open_workspace(parsed, log)
    check_benchmarks(workspace)
    directory = find_model(model).resolve()
    check_model(directory)
    results = Results(parsed, run_id or new_run_id("evaluation-"))
    log(f"Results: {results.directory}")
    found, section = write_scores(workspace, results, evaluate(workspace, directory))
    results.link("model", directory)
    head = f"# {parsed.name}, run {results.run_id}, evaluation only\n\nModel: [model](model)\n"
    publish_report(parsed.name, "evaluation results", results.write("report.md", f"{head}\n{section}"))
    return found
