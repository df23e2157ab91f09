"""The control: the same questions with one another's images. A model that looks at them falls to chance."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from model.evaluation.base import EvaluationError, Question


def shuffle_images(questions: Sequence[Question], digests: Mapping[str, str], seed: int) -> list[Question]:
    """Permutes the images among the questions so that none gets its own, nor an equal one.

    digests: image name → SHA-256 of its bytes. Questions without image, or with one that has no digest, stay as they
    are. Raises EvaluationError if more than half of the questions share one image: no such permutation exists.
    """
    movable = [i for i, q in enumerate(questions) if q.images and all(image.name in digests for image in q.images)]
    by_content: dict[tuple[str, ...], list[int]] = {}
    for i in movable:
        by_content.setdefault(tuple(digests[image.name] for image in questions[i].images), []).append(i)
    most = max(map(len, by_content.values()), default=0)
    if 2 * most > len(movable):
        raise EvaluationError(
            f"no control: {most} of {len(movable)} questions have the same image, so they cannot all get another"
        )
    rng = np.random.default_rng(seed)
    groups = [by_content[content] for content in sorted(by_content)]
    order = [i for place in rng.permutation(len(groups)) for i in rng.permutation(groups[place]).tolist()]
    # Equal images stand together, at most `most` of them: so far along the circle, every image is another.
    shuffled = list(questions)
    for place, i in enumerate(order):
        giver = questions[order[(place + most) % len(order)]]
        shuffled[i] = dataclasses.replace(questions[i], images=giver.images)
    return shuffled
