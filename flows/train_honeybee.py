"""The main flow: turns a recipe's annotation files into a trained and evaluated model."""

from typing import Any

from prefect import flow, get_run_logger
from prefect.task_runners import ThreadPoolTaskRunner

from flows.preflight.check import check_inputs, check_settings
from flows.preflight.surroundings import check_hosts
from flows.recipe.recipe import load_recipe
from flows.report.run_report import write_report
from flows.runs.results import Results
from flows.runs.workspace import STAGES, open_workspace
from flows.tasks.data import build_stage_data, build_stage_examples
from flows.tasks.evaluation import evaluate, secret
from flows.tasks.training import train_backbones, train_stage
from pipelines.jobs.tokenizer import prepare_tokenizer

# One additional thread builds the fine-tuning shards while stage 1 trains.
_TASK_RUNNER: Any = ThreadPoolTaskRunner(max_workers=1)


@flow(name="train-honeybee", flow_run_name="{recipe} {run_id}", task_runner=_TASK_RUNNER)
def train_honeybee(recipe: str = "sample", run_id: str | None = None) -> dict[str, Any]:
    """Builds the data of a recipe, trains both stages, evaluates the model and returns the scores.

    recipe: path of a recipe file, or name of one in flows/recipes. run_id: name of the results directory; default: the
    current time. All outputs are in the store under a fingerprint of their inputs, so a second run reuses them, and a
    run after a crash resumes where the first one stopped.
    """
    log = get_run_logger().info
    parsed = load_recipe(recipe)
    check_settings(parsed)
    check_hosts(parsed, log)
    workspace = open_workspace(parsed, log)
    check_inputs(workspace)
    judge = parsed.evaluation.judge
    if judge is not None and judge.secret is not None:
        secret(judge.secret)  # a missing block fails here rather than after the training
    results = Results(parsed, run_id)
    log(f"Results: {results.directory}")

    vision, llm = train_backbones(workspace)
    tokenizer = prepare_tokenizer(workspace.store, llm)
    # The examples of both stages precede all training, so that a dataset that is mostly rejected fails at once.
    examples = {stage: build_stage_examples(workspace, stage, tokenizer) for stage in STAGES}
    pretrain = build_stage_data(workspace, "pretrain", tokenizer, examples["pretrain"])
    results.link("data/pretrain", pretrain.shards)
    building = build_stage_data.submit(workspace, "finetune", tokenizer, examples["finetune"])
    init = {
        "vision": vision,
        "llm": llm,
        "tokenizer": str(tokenizer),
        "projector": parsed.model.projector.model_dump(),
        "vision_layer": parsed.model.vision_layer,
        "image_size": parsed.model.image_size,
        "image_fit": parsed.model.image_fit,
    }
    stage1 = train_stage(workspace, "pretrain", pretrain.shards, init)
    finetune = building.result()
    results.link("data/finetune", finetune.shards)
    stage2 = train_stage(workspace, "finetune", finetune.shards, {"model": str(stage1 / "output")})

    scores = evaluate(workspace, stage2 / "output") if parsed.evaluation.benchmarks else None
    data = {"pretrain": pretrain, "finetune": finetune}
    return write_report(workspace, results, data, {"pretrain": stage1, "finetune": stage2}, scores)
