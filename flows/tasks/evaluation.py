"""The Prefect task that evaluates a model."""

from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.blocks.system import Secret
from prefect.cache_policies import NO_CACHE

from flows.recipe.recipe import RecipeError
from flows.runs.workspace import Workspace
from flows.tasks.job import Job, identity, run_job
from model.evaluation.files.listing import files_like
from pipelines.core.store import FileDigests, digest_of
from pipelines.core.walk import walk
from pipelines.templates.sets import ROOT as TEMPLATES

PROMPTS = TEMPLATES / "eval"
NON_KEY_JUDGE_SETTINGS = {"key_variable", "concurrency", "timeout", "tries"}  # settings that do not affect verdicts
OFFICIAL_SUFFIXES = (".json", ".jsonl", ".tsv", ".txt", ".parquet")  # suffixes of the benchmarks' official files
VERSION = 4  # raise it when a code change affects an answer or a score


@task(name="evaluate", task_run_name="evaluate", cache_policy=NO_CACHE)
def evaluate(workspace: Workspace, model: Path) -> Path:
    """Returns the directory with `scores.json` and the predictions."""
    recipe, store = workspace.recipe, workspace.store
    digests = FileDigests(store)
    benchmarks: dict[str, dict[str, str]] = {}
    contents: dict[str, Any] = {}
    for name in recipe.evaluation.benchmarks:
        path, images = workspace.benchmark(name)
        benchmarks[name] = {"path": str(path), "images": str(images)}
        files = official_files(path)
        contents[name] = {
            "files": dict(zip(files, digests.digests(list(files.values())), strict=True)),
            "images": digest_of(file_digests(images, digests)),
            "prompts": {
                prompt.relative_to(PROMPTS).as_posix(): digests.digest(prompt)
                for prompt in (PROMPTS / f"{name}.yaml", PROMPTS / "judge" / f"{name}.yaml")
                if prompt.is_file()
            },
        }
    asked = {
        "shuffled_control": recipe.evaluation.shuffled_control,
        "seed": recipe.seed,
        "choose_by": recipe.evaluation.choose_by,
    }
    judge, env = recipe.evaluation.judge, {}
    settings = None if judge is None else judge.model_dump(mode="json", exclude={"secret"})
    if judge is not None and judge.secret is not None:
        env = {judge.key_variable: secret(judge.secret)}
    key = {
        "version": VERSION,
        "model": identity(store, model),
        "benchmarks": contents,
        "judge": {name: value for name, value in (settings or {}).items() if name not in NON_KEY_JUDGE_SETTINGS},
        **asked,
    }
    job = {
        "model": str(model),
        "benchmarks": benchmarks,
        "batch_size": recipe.evaluation.batch_size,
        "device": recipe.launch.device,
        "judge": settings,
        "judge_cache": str(recipe.paths.store.resolve() / "judge-replies"),
        **asked,
    }
    log = get_run_logger().info
    directory = run_job(workspace, "scores", key, Job("model.evaluation", job, distributed=True, env=env), log)
    return directory / "output"


def secret(name: str) -> str:
    """Returns the value of a Prefect secret block. Raises RecipeError if there is no block of that name."""
    try:
        return str(Secret.load(name).get())  # type: ignore[union-attr]  # async only inside a loop
    except ValueError:
        raise RecipeError(
            f"evaluation.judge.secret: Prefect has no secret block {name!r}: create it in the UI under Blocks, or "
            "remove `secret` and set the key in the environment"
        ) from None


def official_files(path: Path) -> dict[str, Path]:
    """Returns a benchmark's files by name, or by path below its folder: MME repeats file names in several tasks."""
    if not path.is_dir():
        return {path.name: path}
    files = [file for file in files_like(path, "**/*.*") if file.suffix in OFFICIAL_SUFFIXES]
    return {file.relative_to(path).as_posix(): file for file in files}


def file_digests(root: Path, digests: FileDigests) -> list[list[str]]:
    """Returns name and digest of every file, so that an exchanged image is noticed whatever its size. Raises WalkError
    for a link that cannot be followed."""
    found = walk(root, "**")
    names = sorted([*(path.relative_to(root).as_posix() for path in found.files), *found.repeated])
    return [[name, digest] for name, digest in zip(names, digests.digests(root / name for name in names), strict=True)]
