"""Multiple choice that cannot be guessed: groups of four images with the same wording and the same four options, each
correct for one image. A model that ignores the image is correct in one of four cases."""

import random
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence

from pipelines.sample_corpus.world.facts import FOUR_WAY, Question
from pipelines.sample_corpus.world.scenes import SceneImage

Group = list[tuple[SceneImage, Question]]
SIZE = 4


def groups_of_four(family: str, scene_images: Sequence[SceneImage], rng: random.Random) -> Iterator[Group]:
    """Yields groups of four images with the same question and four different answers, until none are left."""
    waiting: dict[str, dict[str, deque[tuple[SceneImage, Question]]]] = defaultdict(lambda: defaultdict(deque))
    for scene_image in rng.sample(list(scene_images), len(scene_images)):
        for question in FOUR_WAY[family](scene_image.scene, rng):
            waiting[question.text][question.answer].append((scene_image, question))
    texts = sorted(waiting)
    while texts:
        for text in rng.sample(texts, len(texts)):
            answers = [answer for answer, askable in waiting[text].items() if askable]
            if len(answers) < SIZE:
                texts.remove(text)
            else:
                yield [waiting[text][answer].popleft() for answer in rng.sample(answers, SIZE)]


def take_groups(most: int, scene_images: Sequence[SceneImage], rng: random.Random) -> list[tuple[str, Group]]:
    """Returns at most `most` groups, each with its family; the families alternate."""
    left = {family: groups_of_four(family, scene_images, rng) for family in FOUR_WAY}
    found: list[tuple[str, Group]] = []
    while left:
        for family in list(left):
            group = next(left[family], None)
            if group is None:
                del left[family]
            elif len(found) < most:
                found.append((family, group))
            else:
                return found
    return found
