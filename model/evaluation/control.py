"""The control: the same questions with one another's images. A model that looks at them falls to chance."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence

import numpy as np

from model.evaluation.base import EvaluationError, Question

log = logging.getLogger(__name__)


def shuffle_images(questions: Sequence[Question], digests: Mapping[str, str], seed: int) -> list[Question]:
    """Permutes the images among the questions with equally many so that none gets its own, nor an equal one.

    digests: image name → SHA-256 of its bytes. Questions without image, or with one that has no digest, stay as they
    are; so do those with an unusual number of images that cannot be permuted, which is logged. Raises EvaluationError
    if more than half of the questions with the most usual number share one image: no such permutation exists.
    """
    movable = [i for i, q in enumerate(questions) if q.images and all(image.name in digests for image in q.images)]
    by_number: dict[int, list[int]] = {}
    for i in movable:
        by_number.setdefault(len(questions[i].images), []).append(i)
    usual = max(map(len, by_number.values()), default=0)
    rng = np.random.default_rng(seed)
    shuffled = list(questions)
    for number, members in sorted(by_number.items()):
        by_content: dict[tuple[str, ...], list[int]] = {}
        for i in members:
            by_content.setdefault(tuple(digests[image.name] for image in questions[i].images), []).append(i)
        most = max(map(len, by_content.values()))
        if 2 * most > len(members):
            if len(members) == usual:
                what = f"{most} of {len(members)} questions have the same image"
                raise EvaluationError(f"no control: {what}, so they cannot all get another")
            log.warning("control: %d questions with %d images keep theirs", len(members), number)
            continue
        groups = [by_content[content] for content in sorted(by_content)]
        order = [i for place in rng.permutation(len(groups)) for i in rng.permutation(groups[place]).tolist()]
        # Equal images stand together, at most `most` of them: so far along the circle, every image is another.
        for place, i in enumerate(order):
            giver = questions[order[(place + most) % len(order)]]
            shuffled[i] = dataclasses.replace(questions[i], images=giver.images)
    return shuffled
