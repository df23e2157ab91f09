"""The `honeybee` command. Imports are inside the commands, so that each loads only the packages it needs."""

import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli import chat, official, runs, score
from flows.cli.run_options import ModelArgument, StoreOption
from flows.server import settings
from pipelines.core.files import explain_full_disk
from pipelines.core.hosts import bypass_proxies

if TYPE_CHECKING:
    from flows.recipe.recipe import Recipe

_HELP = "Builds vision-language instruction data, trains a multimodal LLM on it, and evaluates the model."
_EXIT_CODES = "Exits with 0 if all is well, 1 if a check failed, and 3 if something could not be checked."
app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=_HELP)
templates = typer.Typer(
    no_args_is_help=True, help="Commands for the templates that turn annotations into conversation turns."
)
app.add_typer(templates, name="templates")

RecipeArgument = Annotated[str, typer.Argument(help="Path of a recipe file, or name of a bundled recipe, e.g. sample.")]
PortOption = Annotated[int, typer.Option(help="Port of the Prefect server on 127.0.0.1.")]


@app.command()
def sample(
    directory: Annotated[
        Path, typer.Argument(help="Output directory; must be absent, empty or a complete sample corpus.")
    ],
    scenes: Annotated[int, typer.Option(min=1, help="Number of training images.")] = 20000,
    held_out: Annotated[int, typer.Option(min=1, help="Number of images reserved for the benchmarks.")] = 400,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
) -> None:
    """Writes the sample corpus: small drawn scenes in the official file layouts of the datasets and benchmarks."""
    from pipelines.sample_corpus import write_sample

    manifest = write_sample(directory, scenes, held_out, seed)
    for name, layout in manifest["layouts"].items():
        broken = sum(layout["broken"].values()) if isinstance(layout["broken"], dict) else layout["broken"]
        typer.echo(f"{name}: {layout['rows']} rows, {broken} of them deliberately broken")


@app.command()
def build(
    recipe: RecipeArgument,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the recipe and show what would be built. " + _EXIT_CODES)
    ] = False,
    run_id: Annotated[str | None, typer.Option(help="Name of the results directory; default: build-TIME.")] = None,
) -> None:
    """Builds the shards of both stages of a recipe, reusing everything that the store already has."""
    if dry_run:
        _plan(recipe, training=False)
        return
    from flows.server.temporary import prefect_server

    parsed = _check(recipe, training=False)
    with prefect_server():
        from flows.rebuild_dataset import rebuild_dataset
        from flows.runs.results import new_run_id, results_directory

        run_id = run_id or new_run_id("build-")
        built = rebuild_dataset(recipe, run_id)
    for stage, data in built.items():
        typer.echo(f"{stage}: {data.shards}")
    typer.echo(f"report: {results_directory(parsed, run_id) / 'report.md'}")


@app.command()
def train(
    recipe: RecipeArgument,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the recipe and show what it would do. " + _EXIT_CODES)
    ] = False,
    run_id: Annotated[
        str | None, typer.Option(help="Name of the results directory; default: the current time.")
    ] = None,
) -> None:
    """Runs a recipe from start to end on a temporary Prefect server: data, both stages, evaluation, report."""
    if dry_run:
        _plan(recipe, training=True)
        return
    from flows.preflight.surroundings import check_hosts
    from flows.server.temporary import prefect_server

    parsed = _check(recipe, training=True)
    check_hosts(parsed, typer.echo)
    run_id = run_id or time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    with prefect_server():
        from flows.train_honeybee import train_honeybee

        train_honeybee(recipe, run_id)
    _show(parsed, run_id)


@app.command()
def evaluate(
    model: ModelArgument,
    recipe: Annotated[str, typer.Option(help="The recipe that lists the benchmarks.")] = "sample",
    benchmark: Annotated[list[str] | None, typer.Option(help="Run only this benchmark; repeatable.")] = None,
    run_id: Annotated[str | None, typer.Option(help="Name of the results directory; default: evaluation-TIME.")] = None,
    store: StoreOption = None,
) -> None:
    """Evaluates a model on the benchmarks of a recipe."""
    from flows.recipe.recipe import load_recipe
    from flows.runs.find import find_model
    from flows.server.temporary import prefect_server
    from model.check_directory import check_model

    parsed = load_recipe(recipe).with_benchmarks(benchmark)
    model = find_model(model, store or ())
    check_model(model)
    with prefect_server():
        from flows.evaluate_honeybee import evaluate_honeybee
        from flows.runs.results import new_run_id

        run_id = run_id or new_run_id("evaluation-")
        evaluate_honeybee(str(model), recipe, benchmark, run_id)
    _show(parsed, run_id)


for command in (runs.show, runs.trace, runs.diff, runs.overlaps, runs.verify, runs.push):
    app.command()(command)
app.command()(score.score)
app.command()(score.compare)
app.command()(chat.chat)
app.command()(chat.serve)

app.command("import-official")(official.import_official)
app.command("export-official")(official.export_official)


@templates.command("check")
def check_templates(
    sets: Annotated[
        list[str] | None, typer.Argument(metavar="[SET]...", help="Template sets to check; default: all.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Show every template, not only the first of each file.")] = False,
    recipe: Annotated[
        str | None, typer.Option(help="A recipe whose dataset names are also valid as template file names.")
    ] = None,
) -> None:
    """Checks template sets and shows their templates on made-up annotations. Exits with 1 on any error."""
    from flows.explain.templates import check_sets, dataset_tasks

    faults = check_sets(sets or [], dataset_tasks(recipe), every, typer.echo)
    for fault in faults:
        typer.echo(fault, err=True)
    typer.echo(f"Errors found: {len(faults)}" if faults else "No errors found.")
    raise typer.Exit(1 if faults else 0)


@app.command()
def up(port: PortOption = settings.PORT) -> None:
    """Starts the Prefect server and a worker if they are not running, and deploys prefect.yaml."""
    from flows.server.services import start

    start(port, Path("prefect.yaml"), typer.echo)
    typer.echo(f"UI: {settings.ui_url(port)}")
    typer.echo(f"    To log in, open {settings.LOGIN} in a browser, or paste the line that {settings.SECRET} contains.")
    typer.echo(f"Prefect's command: PREFECT_HOME={settings.PREFECT_HOME} prefect …")


@app.command()
def down() -> None:
    """Stops the server and the worker that `up` started, and nothing else."""
    from flows.server.services import stop

    stop(typer.echo)


@app.command()
def submit(
    deployment: Annotated[str, typer.Argument(help="FLOW/NAME of a deployment in prefect.yaml.")],
    run_id: Annotated[str | None, typer.Option(help="Name of the results directory.")] = None,
    port: PortOption = settings.PORT,
) -> None:
    """Runs a deployment on the server and prints its log, and with --run-id its scores. Exits with 1 if it fails."""
    from flows.server.services import check_server, running_record

    check_server(port)
    settings.configure(port)
    from flows.recipe.recipe import load_recipe
    from flows.server.submit import submit as run

    parameters = {"run_id": run_id} if run_id else {}
    ours = running_record("worker") is not None  # otherwise another worker takes the run, and we cannot watch it
    state, used = run(
        deployment,
        parameters,
        alive=lambda: not ours or running_record("worker") is not None,
        has_server=lambda: running_record("server") is not None,
    )
    if state.is_completed() and run_id:
        _show(load_recipe(used["recipe"]), run_id)
    typer.echo(f"UI: {settings.ui_url(port)}")
    raise typer.Exit(0 if state.is_completed() else 1)


def _plan(recipe: str, training: bool) -> None:
    from flows.preflight.dry_run import plan
    from flows.recipe.recipe import load_recipe

    for line in plan(load_recipe(recipe), training):
        typer.echo(line)


def _check(recipe: str, training: bool) -> "Recipe":
    """Loads a recipe and runs the flow's own checks on it, before a server is started."""
    from flows.preflight.check import check_inputs, check_settings, with_corpus
    from flows.recipe.recipe import load_recipe
    from flows.runs.workspace import locate_workspace

    parsed = load_recipe(recipe)
    check_settings(parsed)
    with tempfile.TemporaryDirectory() as scratch:
        check_inputs(with_corpus(locate_workspace(parsed), Path(scratch)), training)
    return parsed


def _show(recipe: "Recipe", run_id: str) -> None:
    """Prints the scores and the results directory of a finished run."""
    from flows.report import score_tables
    from flows.runs.results import results_directory
    from pipelines.core import text_tables

    directory = results_directory(recipe, run_id)
    summary = json.loads((directory / "scores.json").read_text())
    if scores := score_tables.scores(summary):
        typer.echo("")
        for line in text_tables.plain(scores):
            typer.echo(line)
    typer.echo(f"\nResults: {os.path.relpath(directory)}  (see report.md; the model is in model/)")


def main() -> None:
    """Runs the command. Errors raised by this project, and OSErrors, are printed as one message without a traceback.

    SIGTERM and SIGHUP unwind the stack like an error, so that what the command has started ends with it.
    """
    bypass_proxies()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, lambda number, frame: sys.exit(128 + number))
    try:
        with explain_full_disk(Path.cwd()):
            app()
    except Exception as error:
        ours = type(error).__module__.split(".")[0] in ("flows", "model", "pipelines")
        if not ours and not isinstance(error, OSError):
            raise
        typer.echo(f"honeybee: {error}", err=True)
        sys.exit(getattr(error, "exit_code", 1))
