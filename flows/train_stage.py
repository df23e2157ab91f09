"""The training jobs: sample backbones and the two stages, each in processes of its own (flows/launch.py).

A job's directory in the store holds `job.json`, what the job writes, and the manifest once it is done. It is named by
what the weights depend on; micro-batch, ZeRO stage, number of ranks, device and the like are not part of the name, so
that a run can be resumed with others.
"""

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from flows import progress
from flows.hosts import count_ranks, find_cluster
from flows.launch import launch
from flows.workspace import Log, Workspace
from model.training.job import Job
from pipelines.remote import shards_url
from pipelines.store import FileDigests, Store, write_atomic

STAGE_VERSION = 1  # raise it when the code behind it changes the weights that it trains
_PLACES = ("vision", "llm", "tokenizer", "model")  # of what a stage begins with: directories, or hub names


@task(name="backbones", task_run_name="backbones", cache_policy=NO_CACHE)
def train_backbones(workspace: Workspace) -> tuple[str, str]:
    """(vision model, language model), as hub names or directories; the sample recipe trains its own first."""
    backbones = workspace.recipe.backbones
    if backbones.train is None:
        assert backbones.vision and backbones.llm  # the recipe's own check
        return backbones.vision, backbones.llm
    job = {"corpus": str(workspace.data), **backbones.train.model_dump()}
    log = get_run_logger().info
    directory = run_job(workspace, "backbones", workspace.backbones_key(), "model.backbones", job, log)
    return str(directory / "output" / "vision"), str(directory / "output" / "llm")


@task(task_run_name="train {stage}", cache_policy=NO_CACHE)
def train_stage(workspace: Workspace, stage: str, shards: Path, init: Mapping[str, Any]) -> Path:
    """Trains a stage on its shards; returns its directory in the store: `output` is the model, `work` its metrics.

    init: {"vision", "llm", "tokenizer", "projector", "vision_layer", "image_size", "image_fit"}, or {"model":
    directory}.
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
    # What the weights depend on, in the training job's own words; its inputs by content instead of by place.
    depends = Job.model_validate({**job, "output": "output", "work": "work"}).identity()
    key = {
        **depends,
        "version": STAGE_VERSION,
        "shards": shards.name,
        "init": {name: identity(workspace.store, value) if name in _PLACES else value for name, value in init.items()},
    }
    log = get_run_logger().info

    def watched(directory: Path) -> AbstractContextManager[None]:
        return progress.shown(recipe.name, stage, directory / "work" / "metrics.jsonl", log)

    more: Any = {"everywhere": True, "places_of_job": ("output", "work"), "watched": watched}
    return run_job(workspace, "models", key, "model.training", job, log, **more)


def _benchmarks(workspace: Workspace, stage: str) -> dict[str, dict[str, str]]:
    """Where those lie that are asked while the stage trains."""
    evaluate = workspace.stage(stage).train.evaluate
    places = {name: workspace.benchmark(name) for name in (evaluate.benchmarks if evaluate else ())}
    return {name: {"path": str(path), "images": str(images)} for name, (path, images) in places.items()}


def run_job(
    workspace: Workspace,
    kind: str,
    key: Mapping[str, Any],
    module: str,
    job: Mapping[str, Any],
    log: Log,
    everywhere: bool = False,
    env: Mapping[str, str] | None = None,
    places_of_job: Sequence[str] = ("output",),
    watched: Callable[[Path], AbstractContextManager[object]] = contextlib.nullcontext,
) -> Path:
    """The store's directory of (kind, key); runs `python -m module job.json` first if it is not whole.

    everywhere: on all ranks and machines that the recipe asks for, else in one process here. env: what these get
    besides the recipe's, and no file does.
    places_of_job: the keys under which the job is told directories inside that one. watched: what is entered with that
    directory while the processes run. Raises what flows.launch raises if a process fails.
    """
    options = workspace.recipe.launch
    ranks: dict[str, Any] = {}
    if everywhere:
        ranks = {
            "ranks": count_ranks(options),
            "port": options.rendezvous.port,
            "cluster": find_cluster(options),
        }

    def make(directory: Path) -> dict[str, Any]:
        job_path = directory / "job.json"
        places = {name: str(directory / name) for name in places_of_job}
        write_atomic(job_path, json.dumps({**job, **places}, indent=1) + "\n")
        with watched(directory):
            launch(module, job_path, threads=options.threads, log=log, env={**options.env, **(env or {})}, **ranks)
        return {"job": {**job, **places}}

    directory = workspace.store.produce(kind, key, make)
    log(f"{module}: {directory}")
    return directory


def identity(store: Store, value: Any) -> Any:
    """What a job's input is, whatever the directory it lies in: an entry of the store is known by its name, a model
    directory by the content of its files, all else (a hub name, a setting) by itself."""
    path = Path(value) if isinstance(value, str | Path) else None
    if path is None or (not path.is_absolute() and not path.is_dir()):
        return value
    if path.resolve().is_relative_to(store.root):
        return path.resolve().relative_to(store.root).as_posix()
    files = [file for file in sorted(path.iterdir()) if file.is_file()]
    return dict(zip([file.name for file in files], FileDigests(store).digests(files), strict=True))
