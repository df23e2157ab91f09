"""The commands that explain, verify and copy the data of existing runs."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.run_options import RunArgument, StoreOption


def diff(
    run_a: RunArgument,
    run_b: Annotated[str, typer.Argument(help="The run to compare it with.")],
    store: StoreOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Shows what changed in the data between two runs: recipe, inputs, rows, shares and shards."""
    from flows.explain.data_diff import compare, describe
    from flows.runs.find import open_run

    found = compare(open_run(run_a, store or ()), open_run(run_b, store or ()))
    typer.echo(json.dumps(found, indent=1, ensure_ascii=False) if as_json else "\n".join(describe(found)))


def show(
    run: RunArgument,
    duplicates: Annotated[bool, typer.Option("--duplicates", help="Show the turns dropped as duplicates.")] = False,
    dataset: Annotated[str | None, typer.Option(help="Show only this dataset.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="Maximum number of turns to show per dataset.")] = 20,
    store: StoreOption = None,
) -> None:
    """Shows which turns a run dropped from its data and why, the most surprising ones first."""
    if not duplicates:
        raise typer.BadParameter("choose what to show: --duplicates")
    from flows.report.duplicates import show as lines
    from flows.runs.find import open_run

    for line in lines(open_run(run, store or ()), dataset, limit):
        typer.echo(line)


def trace(
    run: RunArgument,
    shard: Annotated[int, typer.Option(min=0, help="Index of the shard, from 0.")],
    row: Annotated[int, typer.Option(min=0, help="Row in the shard, from 0.")],
    stage: Annotated[str, typer.Option(help="pretrain or finetune.")] = "finetune",
    turn: Annotated[int | None, typer.Option(min=0, help="Show only this turn of the sample, from 0.")] = None,
    token: Annotated[
        int | None, typer.Option(min=0, help="Show only the turn of the token at this position of input_ids.")
    ] = None,
    store: StoreOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Traces a training sample back to its official file and row, its templates and the deduplication decision."""
    from flows.explain.trace import lines
    from flows.explain.trace import trace as find
    from flows.runs.find import open_run

    found = find(open_run(run, store or ()), stage, shard, row, turn, token)
    typer.echo(json.dumps(found, indent=1, ensure_ascii=False) if as_json else "\n".join(lines(found)))


def overlaps(
    run: RunArgument,
    examples: Annotated[
        int, typer.Option(min=0, help="Number of overlaps to list per dataset, benchmark and kind.")
    ] = 3,
    store: StoreOption = None,
) -> None:
    """Shows where a run's training data overlaps with the benchmarks in its recipe's `decontamination`."""
    from flows.report.overlaps import report
    from flows.runs.find import open_run

    for line in report(open_run(run, store or ()), examples):
        typer.echo(line)


def verify(
    shards: Annotated[str, typer.Argument(help="Directory of a run, RECIPE/RUN_ID, or a directory or URL of shards.")],
    processes: Annotated[
        int | None, typer.Option(min=1, help="Number of processes; default: the number of cores.")
    ] = None,
    store: StoreOption = None,
) -> None:
    """Verifies shards: checksums, counts, order, quotas, and that every image decodes. Exits with 1 on any error."""
    from flows.runs.find import shards_at
    from pipelines.shards.verify import verify as check

    count = 0
    for location in shards_at(shards, store or ()):
        typer.echo(location)
        count += len(check(location, typer.echo, processes or os.cpu_count() or 1))
    typer.echo(f"Errors found: {count:,}" if count else "No errors found.")
    raise typer.Exit(1 if count else 0)


def push(
    shards: Annotated[str, typer.Argument(help="Directory of a run, RECIPE/RUN_ID, or a directory of shards.")],
    url: Annotated[str, typer.Argument(help="s3://… or file:///…; the shards of a run go to URL/shards/FINGERPRINT/.")],
    store: StoreOption = None,
) -> None:
    """Copies shards to a URL and verifies the copy. Run it again to resume an interrupted upload."""
    from flows.runs.find import is_run, shards_at
    from pipelines.shards.remote import push as copy
    from pipelines.shards.remote import shards_url

    for directory in map(Path, shards_at(shards, store or ())):
        copy(directory, shards_url(url, directory) if is_run(shards) else url, typer.echo)
