"""SEED-Bench's official file, on held-out scenes: questions about images, and two about videos, which do not count for
the image score.

Questions come in groups of four images (see four_way.py); the correct letters of a group are A, B, C and D.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.sample_corpus.world.four_way import take_groups
from pipelines.sample_corpus.world.scenes import SceneImage
from pipelines.sample_corpus.world.writing import LayoutSummary, write_image, write_json

_FILE = Path("SEED-Bench") / "SEED-Bench.json"
_IMAGES = Path("SEED-Bench") / "SEED-Bench-image"
_GROUPS = 30
_CHOICES = ("choice_a", "choice_b", "choice_c", "choice_d")
_DIMENSIONS = {
    "Scene Understanding": 1,
    "Instance Identity": 2,
    "Instance Attributes": 3,
    "Instance Location": 4,
    "Instances Counting": 5,
    "Spatial Relation": 6,
    "Instance Interaction": 7,
    "Visual Reasoning": 8,
    "Text Understanding": 9,
    "Action Recognition": 10,
    "Action Prediction": 11,
    "Procedure Understanding": 12,
}
_OF_FAMILY = {
    "color": "Instance Attributes",
    "shape": "Instance Identity",
    "where": "Instance Location",
    "what": "Spatial Relation",
    "count": "Instances Counting",
    "word": "Text Understanding",
}


def write_seed_bench(directory: Path, scene_images: Sequence[SceneImage], rng: random.Random) -> LayoutSummary:
    """Writes 120 questions if there are enough images. Image names have no suffix, like the official ones."""
    rows: list[dict[str, Any]] = []
    for family, group in take_groups(_GROUPS, scene_images, rng):
        options = [question.answer for _, question in group]
        for scene_image, question in group:
            name = f"{scene_image.id}_{scene_image.id}"
            write_image(directory / _IMAGES / name, scene_image.jpeg)
            rows.append(
                {
                    "answer": "ABCD"[options.index(question.answer)],
                    **dict(zip(_CHOICES, options, strict=True)),
                    "data_id": name,
                    "data_type": "image",
                    "question": question.text,
                    "question_id": str(len(rows) + 1),
                    "question_type_id": _DIMENSIONS[_OF_FAMILY[family]],
                }
            )
    account = LayoutSummary(rows={str(_FILE): len(rows)})
    write_json(directory / _FILE, {"questions": rows + _videos(), "question_type": _DIMENSIONS})
    return account


def _videos() -> list[dict[str, Any]]:
    actions = ("a circle grows", "a circle moves to the left", "a square turns", "a cross appears")
    return [
        {
            "answer": answer,
            **dict(zip(_CHOICES, actions, strict=True)),
            "data_id": f"{number}.webm",
            "data_type": "video",
            "question": "What happens in the video?",
            "question_id": f"v{number}",
            "question_type_id": _DIMENSIONS["Action Recognition"],
        }
        for number, answer in enumerate("AB", start=1)
    ]
