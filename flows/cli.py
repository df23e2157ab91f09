"""The `honeybee` command. Heavy imports stand inside the commands, so that each loads only what it needs."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows import cli_chat, cli_official, cli_score, settings

if TYPE_CHECKING:
    from flows.recipe import Recipe

_HELP = "From official annotation files to a trained and evaluated vision-language model."
app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=_HELP)
templates = typer.Typer(no_args_is_help=True, help="The wordings that turn annotations into turns.")
app.add_typer(templates, name="templates")

RecipeArgument = Annotated[str, typer.Argument(help="A recipe file, or the name of one that comes with the project.")]
PortOption = Annotated[int, typer.Option(help="Port of the Prefect server on 127.0.0.1.")]


@app.command()
def sample(
    directory: Annotated[Path, typer.Argument(help="Where to write; must be empty or a whole sample corpus.")],
    scenes: Annotated[int, typer.Option(min=1, help="Pictures to learn from.")] = 20000,
    held_out: Annotated[int, typer.Option(min=1, help="Pictures that only the benchmarks show.")] = 400,
    seed: int = 0,
) -> None:
    """Writes the sample corpus: small drawn scenes in the official layouts of datasets and benchmarks."""
    from pipelines.sample import write_sample

    manifest = write_sample(directory, scenes, held_out, seed)
    for name, layout in manifest["layouts"].items():
        broken = sum(layout["broken"].values()) if isinstance(layout["broken"], dict) else layout["broken"]
        typer.echo(f"{name}: {layout['rows']} rows, broken on purpose: {broken}")


@app.command()
def build(
    recipe: RecipeArgument,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be built, without building it.")] = False,
    run_id: Annotated[str | None, typer.Option(help="Name of the results directory; build-TIME where absent.")] = None,
) -> None:
    """Builds a recipe's shards, both stages; what is whole in the store is taken from there."""
    if dry_run:
        _plan(recipe, training=False)
        return
    parsed = _check(recipe)
    _own_server()
    from flows.rebuild import rebuild_dataset
    from flows.results import new_run_id, results_directory

    run_id = run_id or new_run_id("build-")
    for stage, data in rebuild_dataset(recipe, run_id).items():
        typer.echo(f"{stage}: {data.shards}")
    typer.echo(f"report: {results_directory(parsed, run_id) / 'report.md'}")


@app.command()
def diff(
    run_a: Annotated[str, typer.Argument(help="A run's directory, or RECIPE/RUN_ID under runs/.")],
    run_b: Annotated[str, typer.Argument(help="The run to compare with it.")],
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Says what changed in the data between two runs: recipe, inputs, rows, shares, shards."""
    from flows.diff import compare, describe

    found = compare(run_a, run_b)
    typer.echo(json.dumps(found, indent=1, ensure_ascii=False) if as_json else "\n".join(describe(found)))


@app.command()
def show(
    run: Annotated[str, typer.Argument(help="A run's directory, or RECIPE/RUN_ID under runs/.")],
    duplicates: Annotated[bool, typer.Option("--duplicates", help="Turns that de-duplication dropped.")] = False,
    dataset: Annotated[str | None, typer.Option(help="Only this dataset.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="Of each dataset at most so many.")] = 20,
) -> None:
    """Prints what a run's data left out and why; the most surprising first."""
    if not duplicates:
        raise typer.BadParameter("say what to show: --duplicates")
    from flows.duplicates import show as lines

    for line in lines(run, dataset, limit):
        typer.echo(line)


@app.command()
def train(
    recipe: RecipeArgument,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the recipe and say what it would do.")] = False,
    run_id: Annotated[str | None, typer.Option(help="Name of the results directory; the time where absent.")] = None,
) -> None:
    """Runs a recipe to the end on a short-lived Prefect server: data, both stages, evaluation, report."""
    if dry_run:
        _plan(recipe, training=True)
        return
    from flows.check import check_machines

    parsed = _check(recipe)
    check_machines(parsed, typer.echo)
    _own_server()
    from flows.train_honeybee import train_honeybee

    run_id = run_id or time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    train_honeybee(recipe, run_id)
    _show(parsed, run_id)


@app.command()
def trace(
    run: Annotated[str, typer.Argument(help="A run's directory, or RECIPE/RUN_ID.")],
    shard: Annotated[int, typer.Option(min=0, help="Number of the shard.")],
    row: Annotated[int, typer.Option(min=0, help="Row of the shard, from 0.")],
    stage: Annotated[str, typer.Option(help="pretrain or finetune.")] = "finetune",
    turn: Annotated[int | None, typer.Option(min=0, help="Only this turn of the sample.")] = None,
    token: Annotated[int | None, typer.Option(min=0, help="Only the turn of this token: a place in input_ids.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Prints the way back from a training sample to official file, row, template and de-duplication decision."""
    from flows.trace import lines
    from flows.trace import trace as find

    found = find(run, stage, shard, row, turn, token)
    typer.echo(json.dumps(found, indent=1, ensure_ascii=False) if as_json else "\n".join(lines(found)))


@app.command()
def overlaps(
    run: Annotated[str, typer.Argument(help="A run's directory, or RECIPE/RUN_ID.")],
    examples: Annotated[int, typer.Option(min=0, help="So many of each kind are shown.")] = 3,
) -> None:
    """Shows what a run's training data shares with the benchmarks of its recipe's `decontamination`."""
    from flows.overlaps import report

    for line in report(run, examples):
        typer.echo(line)


@app.command()
def verify(
    shards: Annotated[str, typer.Argument(help="A run, or RECIPE/RUN_ID; or a directory or URL of shards.")],
    processes: Annotated[int | None, typer.Option(min=1, help="As many as cores where absent.")] = None,
) -> None:
    """Checks shards: sums, counts, order, quotas, and that every picture decodes. Exits with 1 if there is a fault."""
    from flows.runs import shards_at
    from pipelines.verify import verify as check

    count = 0
    for where in shards_at(shards):
        typer.echo(where)
        count += len(check(where, typer.echo, processes or os.cpu_count() or 1))
    typer.echo(f"{count:,} faults" if count else "No fault.")
    raise typer.Exit(1 if count else 0)


@app.command()
def push(
    shards: Annotated[str, typer.Argument(help="A run, or RECIPE/RUN_ID; or a directory of shards.")],
    url: Annotated[str, typer.Argument(help="s3://…, file:///…; a run goes below it, to shards/FINGERPRINT/.")],
) -> None:
    """Copies shards to a URL, compares what arrived, and goes on where it was stopped."""
    from flows.runs import is_run, shards_at
    from pipelines.remote import push as copy
    from pipelines.remote import shards_url

    for where in map(Path, shards_at(shards)):
        copy(where, shards_url(url, where) if is_run(shards) else url, typer.echo)


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="A model directory, e.g. runs/sample/latest/model.")],
    recipe: Annotated[str, typer.Option(help="The recipe whose benchmarks are asked.")] = "sample",
    benchmark: Annotated[list[str] | None, typer.Option(help="Only this one; may be given again.")] = None,
    run_id: Annotated[
        str | None, typer.Option(help="Name of the results directory; evaluation-TIME if absent.")
    ] = None,
) -> None:
    """Asks a model the benchmarks of a recipe, and scores its answers."""
    from flows.recipe import load_recipe
    from model.directory import check_model

    parsed = load_recipe(recipe).with_benchmarks(benchmark)
    check_model(model)
    _own_server()
    from flows.evaluate import evaluate_honeybee
    from flows.results import new_run_id

    run_id = run_id or new_run_id("evaluation-")
    evaluate_honeybee(str(model), recipe, benchmark, run_id)
    _show(parsed, run_id)


app.command()(cli_score.score)
app.command()(cli_score.compare)
app.command()(cli_chat.chat)
app.command()(cli_chat.serve)

app.command("import-official")(cli_official.import_official)
app.command("export-official")(cli_official.export_official)


@templates.command("check")
def check_templates(
    sets: Annotated[list[str] | None, typer.Argument(metavar="[SET]...", help="All sets where none is named.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Show every template, not the first of each file.")] = False,
    recipe: Annotated[str | None, typer.Option(help="Files may be named after its datasets too.")] = None,
) -> None:
    """Checks template sets, and shows their templates on made-up annotations. Exits with 1 if there is a fault."""
    from flows.template_report import check_sets, dataset_tasks

    faults = check_sets(sets or [], dataset_tasks(recipe), every, typer.echo)
    for fault in faults:
        typer.echo(fault, err=True)
    typer.echo(f"{len(faults)} faults" if faults else "No fault.")
    raise typer.Exit(1 if faults else 0)


@app.command()
def up(port: PortOption = settings.PORT) -> None:
    """Starts the Prefect server and a worker unless they run, and deploys prefect.yaml."""
    from flows.services import start

    start(port, Path("prefect.yaml"), typer.echo)
    typer.echo(f"UI: {settings.ui_url(port)}")


@app.command()
def down() -> None:
    """Stops what `up` started, and only that."""
    from flows.services import stop

    stop(typer.echo)


@app.command()
def submit(
    deployment: Annotated[str, typer.Argument(help="FLOW/NAME, as in prefect.yaml.")],
    run_id: Annotated[str | None, typer.Option(help="Name of the results directory.")] = None,
    port: PortOption = settings.PORT,
) -> None:
    """Runs a deployment on the server, shows its log to the end, then its scores. Exits with 1 if it fails."""
    settings.configure(port)
    from flows.recipe import load_recipe
    from flows.services import running
    from flows.submit import submit as run

    parameters = {"run_id": run_id} if run_id else {}
    ours = running("worker") is not None  # else somebody else's worker takes the run
    state, used = run(deployment, parameters, alive=lambda: not ours or running("worker") is not None)
    if state.is_completed() and run_id:
        _show(load_recipe(used["recipe"]), run_id)
    typer.echo(f"UI: {settings.ui_url(port)}")
    raise typer.Exit(0 if state.is_completed() else 1)


def _plan(recipe: str, training: bool) -> None:
    from flows.plan import plan
    from flows.recipe import load_recipe

    for line in plan(load_recipe(recipe), training):
        typer.echo(line)


def _own_server() -> None:
    """Prepares a run with a short-lived server of its own."""
    from flows.services import end_orphans

    end_orphans()
    settings.configure()


def _check(recipe: str) -> "Recipe":
    """The recipe, after what the flow checks too: before a server is started for it."""
    from flows.check import check_inputs, check_settings
    from flows.recipe import load_recipe
    from flows.workspace import locate_workspace

    parsed = load_recipe(recipe)
    check_settings(parsed)
    if parsed.sample is None:
        check_inputs(locate_workspace(parsed))
    return parsed


def _show(recipe: "Recipe", run_id: str) -> None:
    """Scores and places of a finished run."""
    from flows import tables
    from flows.results import results_directory

    directory = results_directory(recipe, run_id)
    summary = json.loads((directory / "scores.json").read_text())
    if scores := tables.scores(summary):
        typer.echo("")
        for line in tables.plain(scores):
            typer.echo(line)
    typer.echo(f"\nResults: {os.path.relpath(directory)}  (start with report.md; the model is in model/)")


def main() -> None:
    """Runs the command; an error of our own, or about a file, is one message, without a traceback.

    Being asked to end (SIGTERM) unwinds like an error, so that a short-lived Prefect server ends with its command.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        app()
    except Exception as error:
        ours = type(error).__module__.split(".")[0] in ("flows", "model", "pipelines")
        if not ours and not isinstance(error, OSError):
            raise
        sys.exit(f"honeybee: {error}")
