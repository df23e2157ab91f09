"""One evaluation: asks a model the questions of each benchmark, scores the answers, writes predictions and scores."""

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from model import distributed
from model.evaluation import benchmarks
from model.evaluation.asking.ask import PreparedQuestions, ask
from model.evaluation.asking.generator import Generator
from model.evaluation.asking.image_cache import ImageCache
from model.evaluation.asking.marks import marks_path, write_marks
from model.evaluation.asking.predictions import load
from model.evaluation.asking.shuffled_images import shuffle_images
from model.evaluation.interface import Benchmark, BenchmarkFiles, Question
from model.evaluation.judging.endpoint_judge import EndpointJudge, JudgeSettings
from model.evaluation.judging.verdicts import add_verdicts
from model.evaluation.prompts import load_prompt
from pipelines.core.files import write_atomic

SHUFFLED = ".shuffled"  # part of the file names of the shuffled-image control
log = logging.getLogger("evaluation")


class Job(BaseModel):
    model_config = ConfigDict(extra="forbid")
    model: Path
    benchmarks: dict[str, BenchmarkFiles] = Field(min_length=1)
    batch_size: int = Field(default=64, gt=0)
    shuffled_control: bool = False
    seed: int = 0
    output: Path
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    judge: JudgeSettings | None = None
    judge_cache: Path | None = None
    choose_by: Literal["generation", "likelihood"] = "generation"  # for multiple-choice and yes-no questions


def evaluate(job: Job) -> dict[str, Any] | None:
    """Asks and scores every benchmark of a job. Returns the content of scores.json on the first rank, None on others.

    Raises EvaluationError if the questions of any benchmark cannot be read, before the first one is asked, and
    TemplateError if the prompt of a benchmark is invalid.
    """
    work = []
    for name, place in job.benchmarks.items():
        benchmark = benchmarks.get(name)
        work.append((benchmark, load_prompt(name), benchmark.read(place.path, place.root)))
    ranks = (
        distributed.init_ranks(job.device)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1
        else distributed.alone(job.device)
    )
    generator = Generator(job.model, ranks.device.type, job.precision)
    job.output.mkdir(parents=True, exist_ok=True)
    for benchmark, prompt, questions in work:
        images = ImageCache(lambda image: generator.processor.preprocess([image])[0], threads=os.cpu_count() or 1)
        images.inspect(questions)
        runs: list[tuple[Path, Any, list[Question]]] = [(_file(job, benchmark), None, questions)]
        if job.shuffled_control:
            shuffled = shuffle_images(questions, images.digests, job.seed)
            runs.append((_file(job, benchmark, SHUFFLED), {"images": "shuffled", "seed": job.seed}, shuffled))
        for path, control, asked in runs:
            header = {"benchmark": benchmark.name, "control": control}
            choices = [benchmark.choices_of(question) for question in asked] if job.choose_by == "likelihood" else ()
            complete = ask(
                PreparedQuestions(generator, images, asked, prompt, choices),
                job.batch_size,
                path,
                header,
                ranks.rank,
                ranks.world,
            )
            ranks.barrier()
            if ranks.first:
                complete.merge(ranks.world)
    distributed.shutdown()  # judging may take longer than the time-out of the process group
    return _score(job, [benchmark for benchmark, _, _ in work]) if ranks.first else None


def _score(job: Job, benchmarks: Sequence[Benchmark]) -> dict[str, Any]:
    """Scores the answers to all benchmarks, with a judge if one is configured, and writes scores.json."""
    judge = None if job.judge is None else EndpointJudge(job.judge, job.judge_cache or job.output / "judge")
    scores: dict[str, Any] = {}
    shuffled: dict[str, Any] = {}
    settings: dict[str, Any] = {"seed": job.seed}
    for benchmark in benchmarks:
        for suffix, result in (("", scores), *([(SHUFFLED, shuffled)] if job.shuffled_control else [])):
            path = _file(job, benchmark, suffix)
            # The control is not judged because that would double the cost.
            predictions = add_verdicts(benchmark, load(benchmark, path), None if suffix else judge)
            if predictions.judging is not None:  # otherwise the marks can be recomputed from the answers
                write_marks(marks_path(path), benchmark.mark(predictions))
            result[benchmark.name] = benchmark.score(predictions)
            settings[benchmark.name] = predictions.settings
            numbers = {key: value for key, value in result[benchmark.name].items() if isinstance(value, float)}
            shown = "  ".join(f"{key} {value:.1f}" for key, value in numbers.items())
            log.info("%s: %s", path.name, shown or "no score without a judge")
    found = scores | ({"shuffled": shuffled} if job.shuffled_control else {}) | {"settings": settings}
    write_atomic(job.output / "scores.json", json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return found


def _file(job: Job, benchmark: Benchmark, suffix: str = "") -> Path:
    return job.output / f"{benchmark.name}{suffix}.predictions.jsonl"
