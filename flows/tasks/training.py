"""Runs the training jobs, i.e. sample backbones and the two stages, in separate processes (flows/launch/launch.py).

A job's store entry contains `job.json`, the job's output, and a manifest once the job is complete. Its fingerprint
covers everything that affects the weights, but not micro-batch, ZeRO stage, number of ranks, device and the like, so
that a run can be resumed with different ones.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from flows.runs.workspace import Workspace
from flows.tasks import progress
from flows.tasks.job import Job, identity, run_job
from model.training.job import Job as TrainingJob
from pipelines.shards.remote import shards_url

VERSION = 1  # raise it when a code change affects the trained weights
_MODELS = ("vision", "llm", "tokenizer", "model")  # keys of `init` whose values are directories or hub names


@task(name="backbones", task_run_name="backbones", cache_policy=NO_CACHE)
def train_backbones(workspace: Workspace) -> tuple[str, str]:
    """Returns (vision model, language model) as hub names or directories, after training them if the recipe says so."""
    backbones = workspace.recipe.backbones
    if backbones.train is None:
        assert backbones.vision and backbones.llm  # the recipe's schema ensures it
        return backbones.vision, backbones.llm
    job = {"corpus": str(workspace.data), **backbones.train.model_dump()}
    log = get_run_logger().info
    directory = run_job(
        workspace, "backbones", workspace.backbones_key(), Job("model.training.sample_backbones", job), log
    )
    return str(directory / "output" / "vision"), str(directory / "output" / "llm")


@task(task_run_name="train {stage}", cache_policy=NO_CACHE)
def train_stage(workspace: Workspace, stage: str, shards: Path, init: Mapping[str, Any]) -> Path:
    """Trains a stage on its shards and returns its directory in the store, with the model in `output` and checkpoints
    and metrics in `work`.

    init: the keys vision, llm, tokenizer, projector, vision_layer, image_size and image_fit, or only `model`, a
    directory.
    """
    recipe, remote = workspace.recipe, workspace.recipe.paths.remote
    by_reference = recipe.images == "reference"
    job = {
        "stage": stage,
        "seed": recipe.seed,
        "shards": shards_url(remote, shards) if remote and recipe.loading.cache else str(shards),
        "image_roots": {spec.name: str(spec.images) for spec in workspace.specs(stage)} if by_reference else {},
        "init": dict(init),
        "train": workspace.stage(stage).train.model_dump(mode="json"),
        "loading": recipe.loading.model_dump(mode="json"),
        "benchmarks": _benchmarks(workspace, stage),
        "device": recipe.launch.device,
        "peak_tflops": recipe.launch.peak_tflops,
    }
    # The job reports what the weights depend on; its inputs enter the key by content instead of by path.
    depends = TrainingJob.model_validate({**job, "output": "output", "work": "work"}).identity()
    key = {
        **depends,
        "version": VERSION,
        "shards": shards.name,
        "init": {name: identity(workspace.store, value) if name in _MODELS else value for name, value in init.items()},
    }
    log = get_run_logger().info

    def while_running(directory: Path) -> AbstractContextManager[None]:
        return progress.shown(recipe.name, stage, directory / "work" / "metrics.jsonl", log)

    return run_job(
        workspace,
        "models",
        key,
        Job("model.training", job, ("output", "work"), distributed=True, while_running=while_running, history="work"),
        log,
    )


def _benchmarks(workspace: Workspace, stage: str) -> dict[str, dict[str, str]]:
    """Returns the paths of the benchmarks that are evaluated during training."""
    evaluate = workspace.stage(stage).train.evaluate
    paths = {name: workspace.benchmark(name) for name in (evaluate.benchmarks if evaluate else ())}
    return {name: {"path": str(path), "images": str(images)} for name, (path, images) in paths.items()}
