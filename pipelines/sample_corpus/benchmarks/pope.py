"""POPE's official files (JSON Lines: question_id, image, text, label), on held-out scenes.

Questions come in pairs of images: the same question has the answer "yes" for one and "no" for the other. Every wording
therefore has both answers equally often, and only the image determines which is correct.
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from pipelines.sample_corpus.world.facts import Question, ask_existence, is_adversarial, relations
from pipelines.sample_corpus.world.scenes import Scene, SceneImage
from pipelines.sample_corpus.world.writing import LayoutSummary, coco_val2014, write_image

_FOLDER = Path("POPE")
Asked = list[tuple[SceneImage, Question]]


def write_pope(directory: Path, scene_images: Sequence[SceneImage], rng: random.Random) -> LayoutSummary:
    """Writes four files. random: any thing; popular: the more frequent things; adversarial: the color and the shape of
    the absent thing occur in the image; relation: left or right, for a scene and its mirror image."""
    counts = Counter(kind for scene_image in scene_images for kind in scene_image.scene.kinds)
    ranked = sorted(counts, key=lambda kind: (-counts[kind], kind))
    popular = set(ranked[: len(ranked) // 2])
    files: dict[str, Asked] = {
        "random": _existence(scene_images, rng, lambda kind, without: True),
        "popular": _existence(scene_images, rng, lambda kind, without: kind in popular),
        "adversarial": _existence(scene_images, rng, is_adversarial),
        "relation": mirrored_relations(scene_images, rng),
    }
    for scene_image in scene_images:
        write_image(directory / _FOLDER / "images" / coco_val2014(scene_image.id), scene_image.jpeg)
    account = LayoutSummary()
    for name, asked in files.items():
        lines = [
            {
                "question_id": number,
                "image": coco_val2014(scene_image.id),
                "text": question.text,
                "label": question.answer,
            }
            for number, (scene_image, question) in enumerate(asked, start=1)
        ]
        file = _FOLDER / f"coco_pope_{name}.json"
        (directory / file).write_text("".join(json.dumps(line) + "\n" for line in lines))
        account.rows[str(file)] = len(lines)
    return account


def _existence(scene_images: Sequence[SceneImage], rng: random.Random, allowed: Callable[[str, Scene], bool]) -> Asked:
    """Pairs images so that, if possible, each has a thing that the other lacks.

    allowed: (kind, scene without it) → whether the question may be asked.
    """

    def only_in(one: SceneImage, other: SceneImage) -> list[str]:
        return sorted(kind for kind in one.scene.kinds - other.scene.kinds if allowed(kind, other.scene))

    waiting = rng.sample(list(scene_images), len(scene_images))
    asked: Asked = []
    while len(waiting) > 1:
        one = waiting.pop()
        partner = max(waiting, key=lambda other: bool(only_in(one, other)) + bool(only_in(other, one)))
        for kinds in (only_in(one, partner), only_in(partner, one)):
            if kinds:
                kind = rng.choice(kinds)
                asked += [(scene_image, ask_existence(kind, scene_image.scene)) for scene_image in (one, partner)]
        waiting.remove(partner)
    return asked


def mirrored_relations(scene_images: Sequence[SceneImage], rng: random.Random) -> Asked:
    """Asks one question of each scene with things on both sides, and of its held-out mirror image, where the answer is
    the opposite."""
    by_scene = {scene_image.scene: scene_image for scene_image in scene_images}
    asked: dict[tuple[int, str], tuple[SceneImage, Question]] = {}
    for scene_image in scene_images:
        mirror = by_scene.get(scene_image.scene.mirrored())
        questions = relations(scene_image.scene, rng)
        if mirror is not None and questions:
            question = rng.choice(questions)
            opposite = "no" if question.answer == "yes" else "yes"
            asked[scene_image.id, question.text] = scene_image, question
            asked[mirror.id, question.text] = mirror, Question(question.text, opposite, question.options)
    return list(asked.values())
