"""A-OKVQA's official file: four choices, the index of the correct one, ten direct answers and three rationales."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.sample_corpus.world.facts import FOUR_WAY, four_options, full_caption
from pipelines.sample_corpus.world.scenes import SceneImage
from pipelines.sample_corpus.world.writing import LayoutSummary, coco_2017, write_image, write_json

_FILE = Path("A-OKVQA") / "aokvqa_v1p0_train.json"
_IMAGES = Path("coco") / "images" / "train2017"
_QUESTIONS_PER_IMAGE = 4


def write_aokvqa(directory: Path, scene_images: Sequence[SceneImage], rng: random.Random) -> LayoutSummary:
    """Writes up to four questions per image; from them, the sample model learns to answer with a letter."""
    rows: list[dict[str, Any]] = []

    def add(scene_image: SceneImage, family: str, **changed: Any) -> int:
        question = rng.choice(FOUR_WAY[family](scene_image.scene, rng))
        choices, right = four_options(question, rng)
        row = {
            "split": "train",
            "image_id": scene_image.id,
            "question_id": f"sample{len(rows):016d}",
            "question": question.text,
            "choices": choices,
            "correct_choice_idx": right,
            "direct_answers": [question.answer] * 10,
            "difficult_direct_answer": False,
            "rationales": [
                f"The picture shows {full_caption(scene_image.scene)}.",
                f"The answer is {question.answer}.",
                f"One sees {question.answer} there.",
            ],
        }
        rows.append({**row, **changed})
        return len(rows) - 1

    for scene_image in scene_images:
        write_image(directory / _IMAGES / coco_2017(scene_image.id), scene_image.jpeg)
        families = [family for family, ask in FOUR_WAY.items() if ask(scene_image.scene, rng)]
        for family in rng.sample(families, min(_QUESTIONS_PER_IMAGE, len(families))):
            add(scene_image, family)

    account = LayoutSummary()
    after = max(scene_image.id for scene_image in scene_images) + 1
    account.add_broken(str(_FILE), add(scene_images[0], "what", image_id=after), "missing image")
    account.add_broken(
        str(_FILE), add(scene_images[0], "what", correct_choice_idx=4), "correct_choice_idx out of range"
    )
    account.add_broken(str(_FILE), add(scene_images[0], "what", question=""), "empty question")
    write_json(directory / _FILE, rows)
    account.rows = {str(_FILE): len(rows)}
    return account
