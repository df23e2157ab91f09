"""Asks a model a benchmark's questions: greedy generation in length-sorted batches, resumable, on one or more ranks.

The order of the questions and their division into batches are fixed before the first answer. They depend neither on
what has already been answered nor on the number of ranks, so a run that was killed and resumed writes the same file.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.evaluation.asking.generator import Generator
from model.evaluation.asking.image_cache import ImageCache
from model.evaluation.asking.predictions import MergedFile, PredictionsFile
from model.evaluation.interface import Answer, Question
from model.evaluation.prompts import Prompt
from pipelines.core.store import fingerprint

LOG_EVERY = 5.0  # seconds
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedQuestions:
    """Questions together with everything that is needed to ask a model.

    choices: the possible answers to each question; if there are any, the likeliest replaces a generated answer.
    images: must have inspected the questions' images. A question with an unusable image is not asked; its answer holds
    the error.
    """

    generator: Generator
    images: ImageCache
    questions: Sequence[Question]
    prompt: Prompt
    choices: Sequence[Sequence[str]] = ()

    def text(self, i: int) -> tuple[str, int]:
        """Returns the user's text of question `i` and the number of images that precede it."""
        return self.prompt.render(self.questions[i]), len(self.questions[i].images)

    def answer(self, batch: Sequence[int], prompts: Sequence[Sequence[int]]) -> list[Answer]:
        """Answers one batch. batch: indices of questions; prompts: the token ids of each of them."""
        answers: dict[int, Answer] = {}
        for i in batch:
            errors = self.images.errors
            if bad := [errors[image.name] for image in self.questions[i].images if image.name in errors]:
                answers[i] = Answer(None, "; ".join(bad))
        good = [(i, prompt) for i, prompt in zip(batch, prompts, strict=True) if i not in answers]
        chosen = [i for i, _ in good if self.choices and self.choices[i]]
        if chosen:
            rows = self.generator.encode_answers([self.text(i) for i in chosen], [self.choices[i] for i in chosen])
            pixels = [self.images.pixels(self.questions[i].images) for i in chosen]
            best = self.generator.likeliest(rows, pixels)
            answers |= {i: Answer(self.choices[i][choice]) for i, choice in zip(chosen, best, strict=True)}
        if free := [(i, prompt) for i, prompt in good if i not in answers]:
            tensors = self.images.pixels([image for i, _ in free for image in self.questions[i].images])
            texts = self.generator.generate([list(prompt) for _, prompt in free], tensors, self.prompt.max_new_tokens)
            answers |= {i: Answer(text) for (i, _), text in zip(free, texts, strict=True)}
        return [answers[i] for i in batch]


def ask(
    asked: PreparedQuestions, batch_size: int, path: Path, header: Mapping[str, Any], rank: int = 0, world: int = 1
) -> MergedFile:
    """Writes the answers to all questions to the predictions file `path`, resuming after those that it already holds.

    header: what the file's first line holds in addition to the settings below (the benchmark, the control's seed).
    With several ranks, rank r answers batches r, r + world, r + 2 · world, … into its own part file; once all ranks
    are done, `merge` of the returned object combines the parts. A file that is already complete is left unchanged.
    """
    questions, prompt = asked.questions, asked.prompt
    prompts = asked.generator.encode([asked.text(i) for i in range(len(questions))])
    # Long prompts come first so that running out of memory shows at once; equal images are adjacent to stay cached.
    order = sorted(
        range(len(questions)),
        key=lambda i: (-len(prompts[i]), [image.name for image in questions[i].images], i),
    )
    settings = {
        **asked.generator.settings,
        "prompt": prompt.text,
        **({} if prompt.without_options is None else {"prompt_without_options": prompt.without_options}),
        "max_new_tokens": prompt.max_new_tokens,
        "batch_size": batch_size,
        **({"choices": "likeliest"} if any(asked.choices) else {}),
    }
    contents = [
        [
            question.id,
            question.truth,
            dict(question.groups),
            tokens,
            [asked.images.digests.get(image.name) for image in question.images],
            *([asked.choices[i]] if asked.choices else []),
        ]
        for i, (question, tokens) in enumerate(zip(questions, prompts, strict=True))
    ]
    first = {**header, "num_questions": len(questions), "settings": settings, "questions": fingerprint(contents)}
    complete = MergedFile(path, first, [questions[i].id for i in order])
    if world > 1 and complete.is_complete():
        return complete
    batches = [order[begin : begin + batch_size] for begin in range(0, len(order), batch_size)][rank::world]
    if world > 1:
        path, first = complete.part(rank, world)
    ids = [questions[i].id for batch in batches for i in batch]
    file = PredictionsFile(path, first, ids, batch_size)
    if file.done:
        log.info("%s: resuming after %d of %d answers", path.name, file.done, len(ids))
    done, started = file.done, time.monotonic()
    last_log = started
    for batch in batches[-(-file.done // batch_size) :]:
        answers = asked.answer(batch, [prompts[i] for i in batch])
        file.append([questions[i] for i in batch], answers)
        done, now = done + len(batch), time.monotonic()
        if now - last_log > LOG_EVERY or done == len(ids):
            speed = (done - file.done) / (now - started)
            log.info("%s: answered %d of %d questions, %.1f per second", path.name, done, len(ids), speed)
            last_log = now
    return complete
