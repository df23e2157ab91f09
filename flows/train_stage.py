"""Runs the training jobs, i.e. sample backbones and the two stages, in separate processes (flows/launch.py).

A job's store entry contains `job.json`, the job's output, and a manifest once the job is complete. Its fingerprint
covers everything that affects the weights, but not micro-batch, ZeRO stage, number of ranks, device and the like, so
that a run can be resumed with different ones.
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

STAGE_VERSION = 1  # raise it when a code change affects the trained weights
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
    directory = run_job(workspace, "backbones", workspace.backbones_key(), "model.backbones", job, log)
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
    depends = Job.model_validate({**job, "output": "output", "work": "work"}).identity()
    key = {
        **depends,
        "version": STAGE_VERSION,
        "shards": shards.name,
        "init": {name: identity(workspace.store, value) if name in _MODELS else value for name, value in init.items()},
    }
    log = get_run_logger().info

    def watched(directory: Path) -> AbstractContextManager[None]:
        return progress.shown(recipe.name, stage, directory / "work" / "metrics.jsonl", log)

    more: Any = {"everywhere": True, "places_of_job": ("output", "work"), "watched": watched}
    return run_job(workspace, "models", key, "model.training", job, log, **more)


def _benchmarks(workspace: Workspace, stage: str) -> dict[str, dict[str, str]]:
    """Returns the paths of the benchmarks that are evaluated during training."""
    evaluate = workspace.stage(stage).train.evaluate
    paths = {name: workspace.benchmark(name) for name in (evaluate.benchmarks if evaluate else ())}
    return {name: {"path": str(path), "images": str(images)} for name, (path, images) in paths.items()}


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
    """Returns the store entry of (kind, key), after running `python -m module job.json` if the entry is not complete.

    everywhere: run on all of the recipe's ranks and hosts instead of in one process here. env: added to the recipe's
    environment variables; not written to any file. places_of_job: keys of the job that are set to subdirectories of the
    entry. watched: returns a context manager for the entry's directory, entered while the processes run. Raises
    LaunchError if a process fails.
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
        directories = {name: str(directory / name) for name in places_of_job}
        write_atomic(job_path, json.dumps({**job, **directories}, indent=1) + "\n")
        with watched(directory):
            launch(module, job_path, threads=options.threads, log=log, env={**options.env, **(env or {})}, **ranks)
        return {"job": {**job, **directories}}

    directory = workspace.store.produce(kind, key, make)
    log(f"{module}: {directory}")
    return directory


def identity(store: Store, value: Any) -> Any:
    """Returns what identifies a job's input, independent of its path: the name of a store entry, the digests of the
    files of a model directory, or any other value (a hub name, a setting) itself."""
    path = Path(value) if isinstance(value, str | Path) else None
    if path is None or (not path.is_absolute() and not path.is_dir()):
        return value
    if path.resolve().is_relative_to(store.root):
        return path.resolve().relative_to(store.root).as_posix()
    files = [file for file in sorted(path.iterdir()) if file.is_file()]
    return dict(zip([file.name for file in files], FileDigests(store).digests(files), strict=True))
