"""The commands for existing answers and scores: `honeybee score` and `honeybee compare`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.run_options import StoreOption

SHOWN = 5  # ids per remark
COUNTED = {"num_questions": "questions", "num_answered": "answered", "num_scored": "answers scored"}


def score(
    benchmark: Annotated[
        str, typer.Argument(help="Benchmark: pope, mme, mmbench, seed_bench, scienceqa, mmmu, mm_vet, …")
    ],
    predictions: Annotated[
        Path, typer.Argument(help="A *.predictions.jsonl file, or a file in one of the benchmark's official formats.")
    ],
    truth: Annotated[
        Path | None, typer.Option(help="Official answers, if the predictions do not contain them.")
    ] = None,
    questions: Annotated[
        Path | None, typer.Option(help="The question file, for formats that only contain question ids.")
    ] = None,
    marks: Annotated[Path | None, typer.Option(help="Write each parsed answer and its credit to this file.")] = None,
    judge: Annotated[
        str | None, typer.Option(help="Base URL of an OpenAI-compatible API that judges the answers.")
    ] = None,
    judge_model: Annotated[str | None, typer.Option(help="Model that judges; requires --judge.")] = None,
    judge_cache: Annotated[Path, typer.Option(help="Cache directory of the judge's replies.")] = Path(
        ".honeybee/judge"
    ),
    store: StoreOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all scores and settings as JSON.")] = False,
) -> None:
    """Scores existing answers without running a model. The judge's API key is read from HONEYBEE_JUDGE_KEY."""
    from pydantic import ValidationError

    from flows.report import score_tables
    from flows.runs.find import through_run
    from model.evaluation import benchmarks
    from model.evaluation.asking.marks import write_marks
    from model.evaluation.asking.predictions import load
    from model.evaluation.interface import EvaluationError
    from model.evaluation.judging.endpoint_judge import EndpointJudge, JudgeSettings
    from model.evaluation.judging.verdicts import add_verdicts
    from pipelines.core import text_tables

    if (judge is None) != (judge_model is None):
        raise typer.BadParameter("--judge and --judge-model must be given together")
    known = benchmarks.get(benchmark)
    predictions = through_run(predictions, store or ())
    judge_of = None
    if judge is not None and judge_model is not None:
        try:
            settings = JudgeSettings(url=judge, model=judge_model)
        except ValidationError as error:  # its text contains the URL, which may contain a password
            first = error.errors()[0]
            option = "--judge" if first["loc"] == ("url",) else "--judge-model"
            raise EvaluationError(f"{option}: {first['msg']}") from None
        judge_of = EndpointJudge(settings, judge_cache)
    found = add_verdicts(known, load(known, predictions, truth, questions), judge_of)
    try:
        scores = known.score(found)
    except EvaluationError as error:
        raise EvaluationError(f"{predictions}: {error}") from None
    if marks is not None:
        write_marks(marks, known.mark(found))
    if as_json:
        typer.echo(json.dumps({benchmark: scores, "settings": dict(found.settings)}, indent=1, ensure_ascii=False))
        return
    for line in text_tables.plain(score_tables.scores({benchmark: scores}, every=True, decimals=2)):
        typer.echo(line)
    for line in remarks(scores):
        typer.echo(text_tables.printable(line))


def compare(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Directories of runs, or RECIPE/RUN_ID under runs/.")
    ],
    every: Annotated[bool, typer.Option("--all", help="Show every measure, with one column per run.")] = False,
    paper: Annotated[bool, typer.Option(help="Also show the published scores of the paper's models.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compares the scores of runs with each other and with those of the paper's models."""
    from flows.report import score_comparison
    from model.evaluation.paper_columns import summary
    from pipelines.core import text_tables

    found = score_comparison.read_runs(runs)
    if as_json:
        complete = {name: {"summary": summary(scores), "scores": scores} for name, scores in found}
        typer.echo(json.dumps(complete, indent=1, ensure_ascii=False))
        return
    for line in text_tables.plain(score_comparison.details(found) if every else score_comparison.columns(found, paper)):
        typer.echo(line)


def remarks(scores: Mapping[str, Any]) -> list[str]:
    """Returns the lines below the table of scores: counts of problems with some ids, and how answers were parsed."""
    counted = [f"{scores[key]:,} {what}" for key, what in COUNTED.items() if key in scores]
    lines = [", ".join(counted)] if counted else []
    for name, value in scores.items():
        what = name.replace("_", " ")
        if isinstance(value, Mapping) and isinstance(value.get("count"), int):  # MME has a task named count
            if value["count"]:
                shown = _first_few(next(v for k, v in value.items() if k != "count"))
                lines.append(f"{what}: {value['count']:,} ({shown})")
        elif isinstance(value, Mapping) and name == "judge":
            lines.append(f"judge: {', '.join(f'{key} {each}' for key, each in value.items())}")
        elif isinstance(value, str):
            lines.append(f"{what}: {value}")
        elif value and isinstance(value, list) and all(isinstance(each, str) for each in value):
            lines.append(f"{what}: {', '.join(value)}")
    return lines


def _first_few(named: Any) -> str:
    shown = [f"{key}: {why}" for key, why in named.items()] if isinstance(named, Mapping) else list(named)
    return ", ".join(shown[:SHOWN]) + (", …" if len(shown) > SHOWN else "")
