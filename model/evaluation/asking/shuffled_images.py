"""The shuffled-image control: each question gets another question's image. A model that uses images drops to chance."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence

import numpy as np

from model.evaluation.interface import EvaluationError, Question

log = logging.getLogger(__name__)


def shuffle_images(questions: Sequence[Question], digests: Mapping[str, str], seed: int) -> list[Question]:
    """Permutes the images among questions with the same number of images; none keeps its own or gets an equal one.

    digests: image name → SHA-256 of its bytes. A question stays unchanged if it has no image or an image without
    digest. So do questions with a less common number of images that cannot be permuted, which is logged. Raises
    EvaluationError if more than half of the questions with the most common number of images share one image, because
    no such permutation exists.
    """
    movable = [i for i, q in enumerate(questions) if q.images and all(image.name in digests for image in q.images)]
    by_count: dict[int, list[int]] = {}
    for i in movable:
        by_count.setdefault(len(questions[i].images), []).append(i)
    largest = max(map(len, by_count.values()), default=0)
    rng = np.random.default_rng(seed)
    shuffled = list(questions)
    for count, members in sorted(by_count.items()):
        by_content: dict[tuple[str, ...], list[int]] = {}
        for i in members:
            by_content.setdefault(tuple(digests[image.name] for image in questions[i].images), []).append(i)
        most = max(map(len, by_content.values()))
        if 2 * most > len(members):
            if len(members) == largest:
                what = f"{most} of {len(members)} questions have the same image"
                raise EvaluationError(f"the images cannot be shuffled: {what}, so not all can get a different one")
            log.warning("control: %d questions with %d images keep their own images", len(members), count)
            continue
        groups = [by_content[content] for content in sorted(by_content)]
        order = [i for group in rng.permutation(len(groups)) for i in rng.permutation(groups[group]).tolist()]
        # Equal images are adjacent, at most `most` of them, so rotating by `most` gives each question another image.
        for position, i in enumerate(order):
            donor = questions[order[(position + most) % len(order)]]
            shuffled[i] = dataclasses.replace(questions[i], images=donor.images)
    return shuffled
