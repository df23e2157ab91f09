"""Asks a model a benchmark's questions: greedy generation in batches sorted by length, resumable.

The order of the questions and their batches are fixed before the first answer and do not depend on what was already
answered, so a run that was killed ends with the same file.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from model.evaluation.base import Answer, Prompt, Question
from model.evaluation.generator import Generator
from model.evaluation.images import ImageCache
from model.evaluation.predictions import PredictionsFile
from pipelines.store import fingerprint

LOG_EVERY = 5.0  # seconds
log = logging.getLogger(__name__)


def ask(
    generator: Generator,
    images: ImageCache,
    questions: Sequence[Question],
    prompt: Prompt,
    batch_size: int,
    path: Path,
    header: Mapping[str, Any],
) -> None:
    """Writes the answers to all questions to the predictions file `path`, going on with what it already holds.

    images: must have inspected the questions' images; a question with a bad image is not asked but written with the
    error. header: what the file's first line tells besides the settings below (the benchmark, the control's seed).
    """
    prompts = generator.encode([(prompt.render(question), len(question.images)) for question in questions])
    # Long prompts first: what does not fit into memory fails at once. Equal images side by side: they stay cached.
    order = sorted(
        range(len(questions)),
        key=lambda i: (-len(prompts[i]), [image.name for image in questions[i].images], i),
    )
    settings = {
        **generator.settings,
        "prompt": prompt.text,
        **({} if prompt.without_options is None else {"prompt_without_options": prompt.without_options}),
        "max_new_tokens": prompt.max_new_tokens,
        "batch_size": batch_size,
    }
    asked = [
        [
            question.id,
            question.truth,
            dict(question.groups),
            tokens,
            [images.digests.get(image.name) for image in question.images],
        ]
        for question, tokens in zip(questions, prompts, strict=True)
    ]
    full_header = {**header, "num_questions": len(questions), "settings": settings, "questions": fingerprint(asked)}
    file = PredictionsFile(path, full_header, [questions[i].id for i in order], batch_size)
    if file.done:
        log.info("%s: %d of %d answers are already there", path.name, file.done, len(questions))
    started = last_log = time.monotonic()
    for begin in range(file.done, len(order), batch_size):
        batch = order[begin : begin + batch_size]
        answers = _ask_batch(generator, images, questions, prompts, batch, prompt.max_new_tokens)
        file.append([questions[i] for i in batch], [answers[i] for i in batch])
        done, now = begin + len(batch), time.monotonic()
        if now - last_log > LOG_EVERY or done == len(order):
            speed = (done - file.done) / (now - started)
            log.info("%s: %d of %d questions, %.1f a second", path.name, done, len(order), speed)
            last_log = now


def _ask_batch(
    generator: Generator,
    images: ImageCache,
    questions: Sequence[Question],
    prompts: Sequence[list[int]],
    batch: Sequence[int],
    max_new_tokens: int,
) -> dict[int, Answer]:
    answers: dict[int, Answer] = {}
    for i in batch:
        if bad := [images.errors[image.name] for image in questions[i].images if image.name in images.errors]:
            answers[i] = Answer(None, "; ".join(bad))
    good = [i for i in batch if i not in answers]
    if good:
        pixels = images.pixels([image for i in good for image in questions[i].images])
        texts = generator.generate([prompts[i] for i in good], pixels, max_new_tokens)
        answers |= {i: Answer(text) for i, text in zip(good, texts, strict=True)}
    return answers
