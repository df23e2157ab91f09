"""Evaluates a model on the recipe's benchmarks, in a process of its own; also a flow for any model directory."""

import json
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE

from flows.recipe import load_recipe
from flows.train_stage import identity, run_job
from flows.workspace import Workspace, open_workspace
from pipelines.store import FileDigests, fingerprint
from pipelines.templates import ROOT as TEMPLATES

TEXTS = (".json", ".jsonl", ".tsv", ".parquet")  # of the benchmarks' official files
EVALUATION_VERSION = 1  # raise it when the code behind it changes an answer or a score


@task(name="evaluate", task_run_name="evaluate", cache_policy=NO_CACHE)
def evaluate(workspace: Workspace, model: Path) -> Path:
    """Returns the directory of `scores.json` and the predictions."""
    recipe, store = workspace.recipe, workspace.store
    digests = FileDigests(store)
    benchmarks: dict[str, dict[str, str]] = {}
    contents: dict[str, Any] = {}
    for name in recipe.evaluation.benchmarks:
        path, images = workspace.benchmark(name)
        benchmarks[name] = {"path": str(path), "images": str(images)}
        files = sorted(p for p in path.glob("**/*.*") if p.suffix in TEXTS) if path.is_dir() else [path]
        contents[name] = {
            "files": dict(zip([file.name for file in files], digests.digests(files), strict=True)),
            "images": fingerprint(_listing(images)),
            "prompt": digests.digest(TEMPLATES / "eval" / f"{name}.yaml"),
        }
    asked = {"shuffled_control": recipe.evaluation.shuffled_control, "seed": recipe.seed}
    key = {"version": EVALUATION_VERSION, "model": identity(store, model), "benchmarks": contents, **asked}
    job = {
        "model": str(model),
        "benchmarks": benchmarks,
        "batch_size": recipe.evaluation.batch_size,
        "device": recipe.launch.device,
        **asked,
    }
    directory = run_job(workspace, "scores", key, "model.evaluation", job, get_run_logger().info)
    return directory / "output"


@flow(name="evaluate-honeybee")
def evaluate_honeybee(recipe: str, model: str) -> dict[str, Any]:
    """Evaluates the model in a directory on the benchmarks of a recipe; returns the scores."""
    workspace = open_workspace(load_recipe(recipe), get_run_logger().info)
    return json.loads((evaluate(workspace, Path(model).resolve()) / "scores.json").read_text())


def _listing(root: Path) -> list[list[Any]]:
    """Name and size of every file: enough to see that images were exchanged, without reading them all."""
    return sorted([p.relative_to(root).as_posix(), p.stat().st_size] for p in root.rglob("*") if p.is_file())
