"""OwlEval's official `questions.jsonl` and images (`cases`), on held-out scenes; people judge the answers."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.sample_corpus.benchmarks.llava_bench import mirrored_pairs
from pipelines.sample_corpus.datasets.llava import DESCRIBE, SAY_WHY
from pipelines.sample_corpus.world.scenes import SceneImage
from pipelines.sample_corpus.world.writing import LayoutSummary, write_image

_FOLDER = Path("OwlEval")
_MOST = 26  # images


def write_owleval(directory: Path, scene_images: Sequence[SceneImage], rng: random.Random) -> LayoutSummary:
    """Writes at most 52 questions: for each image a description, then a relation with its reason."""
    lines: list[dict[str, Any]] = []
    for number, (scene_image, relation) in enumerate(mirrored_pairs(scene_images, rng, _MOST), start=1):
        image = f"{number}.jpg"
        write_image(directory / _FOLDER / "cases" / image, scene_image.jpeg)
        for text, ability, category in (
            (DESCRIBE, "a,b", ["single_turn", "multi_turn"]),
            (f"{relation.text} {SAY_WHY}", "a,b,e,f", ["multi_turn"]),
        ):
            row = {"image": image, "question_id": len(lines) + 1, "question": text}
            lines.append({**row, "ability": ability, "category": category})
    file = _FOLDER / "questions.jsonl"
    (directory / file).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return LayoutSummary(rows={str(file): len(lines)})
