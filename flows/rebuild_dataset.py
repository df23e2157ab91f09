"""Rebuilds those parts of a recipe's data whose inputs have changed; intended to run on a schedule."""

from prefect import flow, get_run_logger

from flows.data.stage_data import StageData
from flows.preflight.check import check_inputs, check_settings
from flows.recipe.recipe import load_recipe
from flows.report.run_report import write_data_report
from flows.runs.results import Results, new_run_id
from flows.runs.workspace import STAGES, open_workspace
from flows.tasks.data import build_stage_data, build_stage_examples
from flows.tasks.training import train_backbones
from pipelines.jobs.tokenizer import prepare_tokenizer


@flow(name="rebuild-dataset", flow_run_name="{recipe}")
def rebuild_dataset(
    recipe: str = "sample", run_id: str | None = None, stages: tuple[str, ...] = STAGES
) -> dict[str, StageData]:
    """Builds a recipe's examples and shards and reports on them in `runs/<recipe>/<run id>/`; returns stage → data.

    run_id: name of the results directory, by default build-TIME. The tokenizer belongs to the language model, so a
    recipe that trains its own backbones trains them first, once.
    """
    log = get_run_logger().info
    parsed = load_recipe(recipe)
    check_settings(parsed)
    workspace = open_workspace(parsed, log)
    check_inputs(workspace, training=False)
    results = Results(parsed, run_id or new_run_id("build-"))
    log(f"Results: {results.directory}")
    _, llm = train_backbones(workspace)
    tokenizer = prepare_tokenizer(workspace.store, llm)
    examples = {stage: build_stage_examples(workspace, stage, tokenizer) for stage in stages}
    data = {}
    for stage in stages:
        data[stage] = build_stage_data(workspace, stage, tokenizer, examples[stage])
        results.link(f"data/{stage}", data[stage].shards)
    write_data_report(parsed, results, data)
    return data
