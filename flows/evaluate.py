"""Evaluates a model on the recipe's benchmarks in separate processes, and provides a flow for any model directory."""

from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.blocks.system import Secret
from prefect.cache_policies import NO_CACHE

from flows.check import check_benchmarks, check_machines
from flows.recipe import RecipeError, load_recipe
from flows.results import Results, new_run_id
from flows.score_report import write_scores
from flows.train_stage import identity, run_job
from flows.workspace import Workspace, open_workspace
from model.directory import check_model
from pipelines.store import FileDigests, fingerprint
from pipelines.templates import ROOT as TEMPLATES

PROMPTS = TEMPLATES / "eval"
HOW_JUDGED = {"key_variable", "concurrency", "timeout", "tries"}  # settings that do not affect verdicts
TEXTS = (".json", ".jsonl", ".tsv", ".txt", ".parquet")  # suffixes of the benchmarks' official files
EVALUATION_VERSION = 3  # raise it when a code change affects an answer or a score


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
            "images": fingerprint(_listing(images)),
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
        "version": EVALUATION_VERSION,
        "model": identity(store, model),
        "benchmarks": contents,
        "judge": {name: value for name, value in (settings or {}).items() if name not in HOW_JUDGED},
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
    directory = run_job(workspace, "scores", key, "model.evaluation", job, log, everywhere=True, env=env)
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


@flow(name="evaluate-honeybee", flow_run_name="{recipe} {model}")
def evaluate_honeybee(
    model: str, recipe: str = "sample", benchmarks: list[str] | None = None, run_id: str | None = None
) -> dict[str, Any]:
    """Evaluates a model directory on benchmarks of a recipe (all of them by default) and returns the scores.

    run_id: name of the results directory under runs/RECIPE/; default: evaluation-TIME.
    """
    log = get_run_logger().info
    parsed = load_recipe(recipe).with_benchmarks(benchmarks)
    check_machines(parsed, log)
    workspace = open_workspace(parsed, log)
    check_benchmarks(workspace)
    directory = Path(model).resolve()
    check_model(directory)
    results = Results(parsed, run_id or new_run_id("evaluation-"))
    log(f"Results: {results.directory}")
    found, section = write_scores(workspace, results, evaluate(workspace, directory))
    results.link("model", directory)
    head = f"# {parsed.name}, run {results.run_id}, evaluation only\n\nModel: [model](model)\n"
    results.write("report.md", f"{head}\n{section}")
    return found


def official_files(path: Path) -> dict[str, Path]:
    """Returns a benchmark's files by name, or by path below its folder: MME repeats file names in several tasks."""
    if not path.is_dir():
        return {path.name: path}
    files = sorted(file for file in path.glob("**/*.*") if file.suffix in TEXTS)
    return {file.relative_to(path).as_posix(): file for file in files}


def _listing(root: Path) -> list[list[Any]]:
    """Returns name and size of every file, which detects replaced images without reading them."""
    return sorted([p.relative_to(root).as_posix(), p.stat().st_size] for p in root.rglob("*") if p.is_file())
