"""LLaVA150K's three official files: descriptions, conversations, and answers with their reasons."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.sample_corpus.world.facts import Question, full_caption, open_questions, relations
from pipelines.sample_corpus.world.scenes import POSITIONS, Scene, SceneImage
from pipelines.sample_corpus.world.writing import LayoutSummary, coco_2017, write_image, write_json

_FOLDER = Path("llava_instruct")
DESCRIBE, SAY_WHY = "Describe the picture.", "Say why."
_IMAGES = Path("coco") / "images" / "train2017"


def write_llava(directory: Path, scene_images: Sequence[SceneImage], rng: random.Random) -> LayoutSummary:
    """Writes for every second image a description, a conversation and, if its things allow it, a reasoned answer."""
    conversations, descriptions, reasoned = [], [], []
    for scene_image in scene_images[::2]:
        scene = scene_image.scene
        write_image(directory / _IMAGES / coco_2017(scene_image.id), scene_image.jpeg)
        turns = [(question.text, question.answer) for question in open_questions(scene, rng)]
        descriptions.append(_row(scene_image, [(DESCRIBE, description(scene))], rng))
        conversations.append(_row(scene_image, [("What do you see?", description(scene)), *turns], rng))
        for question in relations(scene, rng)[:1]:
            reasoned.append(_row(scene_image, [(f"{question.text} {SAY_WHY}", reason(scene, question))], rng))

    account = LayoutSummary()
    first = scene_images[0]
    file = str(_FOLDER / "conversation_58k.json")
    for what, row in {
        "missing image": {**conversations[0], "image": coco_2017(0)},
        "image outside its root": {**conversations[0], "image": "../../outside.jpg"},
        "empty answer": _row(first, [(DESCRIBE, "")], rng),
        "assistant speaks first": {**conversations[0], "conversations": conversations[0]["conversations"][1:]},
    }.items():
        account.add_broken(file, len(conversations), what)
        conversations.append(row)
    for name, rows in (
        ("complex_reasoning_77k", reasoned),
        ("conversation_58k", conversations),
        ("detail_23k", descriptions),
    ):
        write_json(directory / _FOLDER / f"{name}.json", rows)
        account.rows[str(_FOLDER / f"{name}.json")] = len(rows)
    return account


def description(scene: Scene) -> str:
    return f"The picture shows {full_caption(scene)}."


def reason(scene: Scene, question: Question) -> str:
    """Returns the positions of the two things, followed by the answer to a question of facts.relations."""
    positions = " and ".join(
        f"the {thing.kind} is at the {POSITIONS[cell]}"
        for cell, thing in scene.things.items()
        if thing.kind in question.text
    )
    return f"{positions[0].upper()}{positions[1:]}, so the answer is {question.answer}."


def _row(scene_image: SceneImage, turns: list[tuple[str, str]], rng: random.Random) -> dict[str, Any]:
    """Returns one official row; `<image>` precedes or follows the first question."""
    messages = []
    for number, (user, assistant) in enumerate(turns):
        if number == 0:
            user = rng.choice((f"<image>\n{user}", f"{user}\n<image>"))
        messages += [{"from": "human", "value": user}, {"from": "gpt", "value": assistant}]
    return {"id": f"{scene_image.id:012d}", "image": coco_2017(scene_image.id), "conversations": messages}
