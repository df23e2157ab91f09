"""MME's official release (one folder per task, and next to each image a .txt with two questions), on held-out scenes.

Images come in pairs with the same two questions and opposite answers. Every wording therefore has the answers yes and
no equally often, and one question of an image does not reveal the answer to the other.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pipelines.sample_corpus.world.facts import relations
from pipelines.sample_corpus.world.scenes import SHAPES, SceneImage
from pipelines.sample_corpus.world.writing import LayoutSummary, coco_2017, write_image

_FOLDER = Path("MME")
_PAIRS = 10  # image pairs per task: forty questions
_ENDING = " Please answer yes or no."

# Two images → a question that only the first answers with yes and one that only the second does; None if impossible.
Differ = Callable[[SceneImage, SceneImage, random.Random], tuple[str, str] | None]


def write_mme(directory: Path, scene_images: Sequence[SceneImage], rng: random.Random) -> LayoutSummary:
    """Writes four tasks. existence: any thing; count: the number of things; color: of things with the same shape;
    position: left or right, for a scene and its mirror image."""
    tasks: dict[str, Differ] = {"existence": _existence, "count": _count, "position": _position, "color": _color}
    account = LayoutSummary()
    for task, differ in tasks.items():
        folder = directory / _FOLDER / task
        rows = 0
        for scene_image, questions in _asked(scene_images, differ, rng):
            image = folder / coco_2017(scene_image.id)
            write_image(image, scene_image.jpeg)
            lines = [
                f"{question}{_ENDING}\t{answer}\n" for question, answer in zip(questions, ("Yes", "No"), strict=True)
            ]
            image.with_suffix(".txt").write_text("".join(lines))
            rows += len(lines)
        if rows:
            account.rows[str(_FOLDER / task)] = rows
    return account


def _asked(
    scene_images: Sequence[SceneImage], differ: Differ, rng: random.Random
) -> Iterator[tuple[SceneImage, tuple[str, str]]]:
    """Yields each image at most once, with a question whose answer is yes and one whose answer is no."""
    waiting = rng.sample(list(scene_images), len(scene_images))
    pairs = 0
    while waiting and pairs < _PAIRS:
        one = waiting.pop()
        for other in waiting:
            questions = differ(one, other, rng)
            if questions is not None:
                yield one, questions
                yield other, (questions[1], questions[0])
                waiting.remove(other)
                pairs += 1
                break


def _existence(one: SceneImage, other: SceneImage, rng: random.Random) -> tuple[str, str] | None:
    return _kinds(sorted(one.scene.kinds - other.scene.kinds), sorted(other.scene.kinds - one.scene.kinds), rng)


def _kinds(first: list[str], second: list[str], rng: random.Random) -> tuple[str, str] | None:
    if not first or not second:
        return None
    return f"Is there a {rng.choice(first)} in the image?", f"Is there a {rng.choice(second)} in the image?"


def _color(one: SceneImage, other: SceneImage, rng: random.Random) -> tuple[str, str] | None:
    for shape in rng.sample(SHAPES, len(SHAPES)):
        first, second = (
            sorted(kind for kind in here.scene.kinds - there.scene.kinds if kind.endswith(shape))
            for here, there in ((one, other), (other, one))
        )
        if first and second:
            return _kinds(first, second, rng)
    return None


def _count(one: SceneImage, other: SceneImage, rng: random.Random) -> tuple[str, str] | None:
    first, second = len(one.scene.things), len(other.scene.things)
    return None if first == second else (_total(first), _total(second))


def _total(number: int) -> str:
    """Uses only words of the training data, although training never asks for a number in this form."""
    return f"Is there a picture of {number} {'shape' if number == 1 else 'shapes'} in the image?"


def _position(one: SceneImage, other: SceneImage, rng: random.Random) -> tuple[str, str] | None:
    if other.scene != one.scene.mirrored():
        return None
    for question in relations(one.scene, rng):
        opposite = question.text.replace(" left of ", " right of ")
        if opposite == question.text:
            opposite = question.text.replace(" right of ", " left of ")
        return (question.text, opposite) if question.answer == "yes" else (opposite, question.text)
    return None
