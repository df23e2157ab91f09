"""The evaluation job: `python -m model.evaluation JOB.json`.

JOB = {"model": directory, "benchmarks": {name: {"path", "images"}}, "batch_size", "shuffled_control", "seed",
"output": directory}; "device", "precision", "choose_by", "judge" (see judge.py; its API key stays in the environment)
and "judge_cache" (where its replies are cached, by default `output/judge`) are optional. The job writes
`output/<benchmark>[.shuffled].predictions.jsonl`, `output/<benchmark>.marks.jsonl` if a judge was asked, and, once all
questions are answered, `output/scores.json`. A killed job resumes where it stopped when it is run again. Under
torchrun, or with the environment variables that it sets, the ranks share the questions.
"""

import logging
import sys
from pathlib import Path

import transformers
from pydantic import ValidationError

from model import lifeline
from model.evaluation.interface import EvaluationError
from model.evaluation.run import Job, evaluate
from pipelines.core.errors import StoreError
from pipelines.core.files import explain_full_disk
from pipelines.templates.sets import TemplateError


def main(arguments: list[str]) -> None:
    if len(arguments) != 1:
        raise SystemExit("usage: python -m model.evaluation JOB.json")
    lifeline.hold()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs every request; the judge logs its own progress
    transformers.utils.logging.disable_progress_bar()
    try:
        job = Job.model_validate_json(Path(arguments[0]).read_bytes())
        with explain_full_disk(job.output, StoreError):
            evaluate(job)
    except (ValidationError, EvaluationError, TemplateError, StoreError) as error:
        raise SystemExit(f"{arguments[0]}: {error}") from None


if __name__ == "__main__":
    main(sys.argv[1:])
