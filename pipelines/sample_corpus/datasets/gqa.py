"""GQA's official file: questions by id, each with the program that computes its answer from the scene."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipelines.sample_corpus.world.facts import (
    OPPOSITES,
    Question,
    ask_color,
    ask_existence,
    ask_size,
    sample_kinds,
    statements,
    uniquely_shaped,
)
from pipelines.sample_corpus.world.scenes import SceneImage, SceneObject
from pipelines.sample_corpus.world.writing import LayoutSummary, subsample, write_image, write_json

_FOLDER = Path("GQA")
_FILE = _FOLDER / "annotations" / "train_balanced_questions.json"
_MOST = 2  # questions of one family about one image

Step = tuple[str, str, list[int]]  # operation, argument, indices of the steps whose results it uses


def write_gqa(directory: Path, scene_images: Sequence[SceneImage], rng: random.Random) -> LayoutSummary:
    """Writes up to seven questions per image, of four families: existence, color, size and relative position."""
    rows: dict[str, dict[str, Any]] = {}
    account = LayoutSummary()

    def add(row: dict[str, Any]) -> int:
        key = f"{row['imageId'][1:]}{len(rows):06d}"
        rows[key] = {**row, "equivalent": [key]}
        return len(rows) - 1

    scene_images = subsample(scene_images, 1)
    for scene_image in scene_images:
        write_image(directory / _FOLDER / "images" / f"{_image_id(scene_image.id)}.jpg", scene_image.jpeg)
        for row in _asked(scene_image, rng):
            add(row)
    good = next(_asked(scene_images[0], rng))
    after = max(scene_image.id for scene_image in scene_images) + 1
    write_image(directory / _FOLDER / "images" / f"{_image_id(after)}.jpg", scene_images[0].truncated)
    account.add_broken(str(_FILE), add({**good, "imageId": _image_id(after)}), "truncated JPEG")
    account.add_broken(str(_FILE), add({**good, "imageId": _image_id(after + 1)}), "missing image")
    account.add_broken(str(_FILE), add({**good, "answer": ""}), "empty answer")
    account.add_broken(str(_FILE), add({**good, "question": ""}), "empty question")
    write_json(directory / _FILE, rows)
    account.rows = {str(_FILE): len(rows)}
    return account


def _image_id(identity: int) -> str:
    return f"n{identity:06d}"


def _asked(scene_image: SceneImage, rng: random.Random) -> Iterator[dict[str, Any]]:
    scene = scene_image.scene
    cell_of = {thing.kind: cell for cell, thing in scene.things.items()}

    def named(name: str, thing: SceneObject | None) -> str:
        """Returns the name of an object in a program: with its index in the scene, if it is present."""
        return f"{name} ({cell_of[thing.kind] if thing else '-'})"

    for kind in sample_kinds(scene, rng, _MOST):
        thing = scene.things[cell_of[kind]] if kind in cell_of else None
        question = ask_existence(kind, scene)
        full = f"Yes, there is a {kind}." if thing else f"No, there is no {kind}."
        steps: list[Step] = [("select", named(kind, thing), []), ("exist", "?", [0])]
        yield _row(scene_image, question, full, steps, ("verify", "obj", "exist"), (None, f"03-{kind}"), thing)
    unique = list(uniquely_shaped(scene).values())
    for thing in rng.sample(unique, min(_MOST, len(unique))):
        full = f"The {thing.shape} is {thing.color}."
        steps = [("select", named(thing.shape, thing), []), ("query", "color", [0])]
        groups: tuple[str | None, str] = ("color", f"10q-{thing.shape}_color")
        yield _row(scene_image, ask_color(thing), full, steps, ("query", "attr", "directOf"), groups, thing)
    for thing in rng.sample(list(scene.things.values()), min(_MOST, len(scene.things))):
        full = f"The {thing.kind} is {thing.size}."
        steps = [("select", named(thing.kind, thing), []), ("choose size", "small|large", [0])]
        groups = ("size", f"10c-{thing.kind}_size")
        yield _row(scene_image, ask_size(thing), full, steps, ("choose", "attr", "chooseAttr"), groups, thing)
    for statement in statements(scene, rng)[:1]:
        one, other, relation = statement.one, statement.other, statement.relation
        answer = "yes" if statement.holds else "no"
        question = Question(f"Is the {one.kind} {relation} the {other.kind}?", answer, ("yes", "no"))
        seen = relation if statement.holds else OPPOSITES[relation]
        full = f"{answer.capitalize()}, the {one.kind} is {seen} the {other.kind}."
        steps = [("select", named(other.kind, other), [])]
        steps.append(("verify rel", f"{one.kind},{relation},s ({cell_of[one.kind]})", [0]))
        groups = (None, f"13-{other.kind}_{one.kind}")
        yield _row(scene_image, question, full, steps, ("verify", "rel", "relVerify"), groups, one, other)


def _row(
    scene_image: SceneImage,
    question: Question,
    full: str,
    steps: list[Step],
    types: tuple[str, str, str],
    groups: tuple[str | None, str],
    *things: SceneObject | None,
) -> dict[str, Any]:
    """Returns one official row. things: the things that the question names and the scene contains."""
    cell_of = {thing: cell for cell, thing in scene_image.scene.things.items()}

    def mentions(text: str) -> dict[str, str]:
        """Returns word index → the object that it names; the color before it distinguishes things of one shape."""
        words = [word.strip("?,.") for word in text.split()]
        return {
            str(index): str(cell_of[thing])
            for index, word in enumerate(words)
            for thing in things
            if thing and word == thing.shape and (types[1:] == ("attr", "directOf") or words[index - 1] == thing.color)
        }

    return {
        "semantic": [{"operation": op, "dependencies": after, "argument": what} for op, what, after in steps],
        "entailed": [],
        "equivalent": [],
        "question": question.text,
        "imageId": _image_id(scene_image.id),
        "isBalanced": True,
        "groups": {"global": groups[0], "local": groups[1]},
        "answer": question.answer,
        "semanticStr": "->".join(f"{op}: {what} {after or ''}".strip() for op, what, after in steps),
        "annotations": {"answer": {}, "question": mentions(question.text), "fullAnswer": mentions(full)},
        "types": dict(zip(("structural", "semantic", "detailed"), types, strict=True)),
        "fullAnswer": full,
    }
