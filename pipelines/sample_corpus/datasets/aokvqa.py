"""A-OKVQA's official file: four choices, the index of the correct one, ten direct answers and three rationales."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.sample_corpus.world.facts import FOUR_WAY, four_options, full_caption
from pipelines.sample_corpus.world.scenes import Picture
from pipelines.sample_corpus.world.writing import Account, coco_2017, write_image, write_json

_FILE = Path("A-OKVQA") / "aokvqa_v1p0_train.json"
_IMAGES = Path("coco") / "images" / "train2017"
_QUESTIONS_PER_IMAGE = 4


def write_aokvqa(directory: Path, pictures: Sequence[Picture], rng: random.Random) -> Account:
    """Writes up to four questions per image; from them, the sample model learns to answer with a letter."""
    rows: list[dict[str, Any]] = []

    def add(picture: Picture, family: str, **changed: Any) -> int:
        question = rng.choice(FOUR_WAY[family](picture.scene, rng))
        choices, right = four_options(question, rng)
        row = {
            "split": "train",
            "image_id": picture.id,
            "question_id": f"sample{len(rows):016d}",
            "question": question.text,
            "choices": choices,
            "correct_choice_idx": right,
            "direct_answers": [question.answer] * 10,
            "difficult_direct_answer": False,
            "rationales": [
                f"The picture shows {full_caption(picture.scene)}.",
                f"The answer is {question.answer}.",
                f"One sees {question.answer} there.",
            ],
        }
        rows.append({**row, **changed})
        return len(rows) - 1

    for picture in pictures:
        write_image(directory / _IMAGES / coco_2017(picture.id), picture.jpeg)
        families = [family for family, ask in FOUR_WAY.items() if ask(picture.scene, rng)]
        for family in rng.sample(families, min(_QUESTIONS_PER_IMAGE, len(families))):
            add(picture, family)

    account = Account()
    after = max(picture.id for picture in pictures) + 1
    account.broke(str(_FILE), add(pictures[0], "what", image_id=after), "missing image")
    account.broke(str(_FILE), add(pictures[0], "what", correct_choice_idx=4), "correct_choice_idx out of range")
    account.broke(str(_FILE), add(pictures[0], "what", question=""), "empty question")
    write_json(directory / _FILE, rows)
    account.rows = {str(_FILE): len(rows)}
    return account
