"""LLaVA-Bench's official files (questions, context and reference answers, as JSON Lines), on held-out scenes.

Each scene appears together with its mirror image: both get the same questions, and their answers differ.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.sample_corpus.benchmarks.pope import mirrored_relations
from pipelines.sample_corpus.datasets.llava import DESCRIBE, SAY_WHY, description, reason
from pipelines.sample_corpus.world.facts import FOUR_WAY, Question
from pipelines.sample_corpus.world.scenes import SceneImage
from pipelines.sample_corpus.world.writing import LayoutSummary, write_image

_FOLDER = Path("LLaVA-Bench")
_MOST = 24  # images


def write_llava_bench(directory: Path, scene_images: Sequence[SceneImage], rng: random.Random) -> LayoutSummary:
    """Writes at most 72 questions: one of every category per image."""
    files: dict[str, list[dict[str, Any]]] = {"questions": [], "context": [], "answers_gpt4": []}
    for number, (scene_image, relation) in enumerate(mirrored_pairs(scene_images, rng, _MOST), start=1):
        scene, image = scene_image.scene, f"{number:03d}.jpg"
        write_image(directory / _FOLDER / "images" / image, scene_image.jpeg)
        files["context"].append({"id": f"{number:03d}", "image": image, "caption": description(scene)})
        thing = min(thing.kind for thing in scene.things.values())  # the same for the mirror image
        (where,) = [asked for asked in FOUR_WAY["where"](scene, rng) if asked.text == f"Where is the {thing}?"]
        for category, text, answer in (
            ("conv", where.text, f"The {thing} is at the {where.answer}."),
            ("detail", DESCRIBE, description(scene)),
            ("complex", f"{relation.text} {SAY_WHY}", reason(scene, relation)),
        ):
            key = len(files["questions"])
            files["questions"].append({"image": image, "text": text, "category": category, "question_id": key})
            files["answers_gpt4"].append(
                {"question_id": key, "prompt": text, "answer_id": str(key), "model_id": "sample", "text": answer}
            )
    account = LayoutSummary()
    for name, rows in files.items():
        file = _FOLDER / f"{name}.jsonl"
        (directory / _FOLDER).mkdir(parents=True, exist_ok=True)
        (directory / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
        account.rows[str(file)] = len(rows)
    return account


def mirrored_pairs(
    scene_images: Sequence[SceneImage], rng: random.Random, most: int
) -> list[tuple[SceneImage, Question]]:
    """Returns at most `most` images, each once and next to its mirror image, with one relation question for both."""
    first: dict[int, tuple[SceneImage, Question]] = {}
    for scene_image, question in mirrored_relations(scene_images, rng):
        first.setdefault(scene_image.id, (scene_image, question))
    return list(first.values())[:most]
