"""Evaluates the model on benchmarks during training: all ranks together answer the first questions of each.

The model is switched to evaluation mode and back, nothing in it changes and no random number is drawn, so evaluation
does not affect training. Answers and scores are cached in `work/evaluations/step-<n>/`; a run that reaches the same
step again reuses the scores.
"""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from model.distributed import Ranks
from model.evaluation import benchmarks
from model.evaluation.asking.ask import PreparedQuestions, ask
from model.evaluation.asking.generator import LiveGenerator
from model.evaluation.asking.image_cache import ImageCache
from model.evaluation.asking.predictions import load
from model.evaluation.interface import Answer, Benchmark, EvaluationError, Predictions, Question
from model.evaluation.prompts import Prompt, load_prompt
from model.processing import HoneybeeProcessor
from model.training.callback import Callback
from model.training.job import Job
from model.training.settings import JobError
from pipelines.core.files import write_atomic
from pipelines.core.store import fingerprint

log = logging.getLogger("honeybee.training")


class PeriodicEvaluation(Callback):
    """The benchmarks of a stage; questions and images are read once, by the constructor."""

    def __init__(
        self, job: Job, identity: Mapping[str, Any], model: nn.Module, processor: HoneybeeProcessor, ranks: Ranks
    ):
        """identity: what the trained weights depend on; cached scores of a different job are not reused.

        Raises JobError if the questions of a benchmark cannot be read, asked or scored.
        """
        settings, every = job.train.evaluate, job.train.evaluate_every
        assert settings is not None and every is not None  # callbacks.py chooses this class only for such jobs
        self.settings, self.every, self.ranks, self.identity = settings, every, ranks, fingerprint(identity)
        self.directory = job.work / "evaluations"
        self.generator = LiveGenerator(model, processor, ranks.device)
        self.images = ImageCache(lambda image: processor.preprocess([image])[0], threads=os.cpu_count() or 1)
        self.work: list[tuple[Benchmark, Prompt, list[Question]]] = []
        for name in settings.benchmarks:
            try:
                benchmark, prompt, place = benchmarks.get(name), load_prompt(name), job.benchmarks[name]
                questions = benchmark.read(place.path, place.root)[: settings.questions]
                self.generator.encode([(prompt.render(questions[0]), len(questions[0].images))])
                benchmark.score(
                    Predictions(questions, {each.id: Answer("") for each in questions})
                )  # raises if these questions cannot be scored
            except (ValueError, OSError) as error:
                raise JobError(f"train.evaluate: {name}: {error}") from None
            self.images.inspect(questions[ranks.rank :: ranks.world])
            self.work.append((benchmark, prompt, questions))

    def evaluate(self, step: int) -> dict[str, float] | None:
        """Returns {"eval/<benchmark>/<score>": value} on the first rank and {} on the others, or None if no evaluation
        is due."""
        if step % self.every:
            return None
        directory = self.directory / f"step-{step:08d}"
        cached = self._cached(directory) if self.ranks.first else None
        if self.ranks.sum([cached is not None])[0]:
            return cached or {}
        directory.mkdir(parents=True, exist_ok=True)
        found: dict[str, float] = {}
        with _evaluating(self.generator.model):
            for benchmark, prompt, questions in self.work:
                path = directory / f"{benchmark.name}.rank-{self.ranks.rank:05d}.predictions.jsonl"
                share = questions[self.ranks.rank :: self.ranks.world]
                if share:
                    path.unlink(missing_ok=True)
                    header = {"benchmark": benchmark.name, "step": step, "job": self.identity}
                    ask(
                        PreparedQuestions(self.generator, self.images, share, prompt),
                        self.settings.batch_size,
                        path,
                        header,
                    )
                self.ranks.barrier()
                if self.ranks.first:
                    answers: dict[str, Answer] = {}
                    for rank in range(min(self.ranks.world, len(questions))):
                        part = directory / f"{benchmark.name}.rank-{rank:05d}.predictions.jsonl"
                        answers |= load(benchmark, part).answers
                    try:
                        result = benchmark.score(Predictions(questions, answers))
                    except EvaluationError as error:  # e.g. no image can be read; this must not end the training
                        log.warning("step %d: %s cannot be scored: %s", step, benchmark.name, error)
                        result = {}
                    own = {key: value for key, value in result.items() if isinstance(value, float)}
                    found |= {f"eval/{benchmark.name}/{key}": value for key, value in own.items()}
                    shown = "  ".join(f"{key} {value:.1f}" for key, value in own.items())
                    log.info("step %d: %s, %d questions: %s", step, benchmark.name, len(questions), shown)
        if self.ranks.first:
            record = {"job": self.identity, "settings": self.settings.model_dump(mode="json"), "scores": found}
            write_atomic(directory / "scores.json", json.dumps(record, indent=1) + "\n")
        return found

    def _cached(self, directory: Path) -> dict[str, float] | None:
        path = directory / "scores.json"
        if not path.is_file():
            return None
        cached = json.loads(path.read_text())
        same = (cached["job"], cached["settings"]) == (self.identity, self.settings.model_dump(mode="json"))
        return cached["scores"] if same else None


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Puts the model in evaluation mode, then restores the mode of each module: a frozen part may already be in it."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in before:
            module.training = training
