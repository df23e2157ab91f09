"""ScienceQA's official files with a test split, on held-out scenes, in a separate folder from the training problems of
scienceqa.py.

Questions come in groups of four images (see four_way.py). Groups alternate between the images and their descriptions as
hints. A few additions have neither.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.sample_corpus.datasets.scienceqa import png
from pipelines.sample_corpus.world.facts import full_caption
from pipelines.sample_corpus.world.four_way import take_groups
from pipelines.sample_corpus.world.scenes import SceneImage
from pipelines.sample_corpus.world.writing import LayoutSummary, write_image, write_json

_FOLDER = Path("ScienceQA-test")
_PROBLEMS, _SPLITS = _FOLDER / "problems.json", _FOLDER / "pid_splits.json"
_GROUPS = 30
_SUMS = 8
_LETTERS = 4


def write_scienceqa_test(directory: Path, scene_images: Sequence[SceneImage], rng: random.Random) -> LayoutSummary:
    problems: dict[str, dict[str, Any]] = {}

    def add(
        question: str, choices: list[str], right: int, *, hint: str, has_image: bool, topic: str, grade: int
    ) -> str:
        pid = str(len(problems) + 1)
        problems[pid] = {
            "question": question,
            "choices": choices,
            "answer": right,
            "hint": hint,
            "image": "image.png" if has_image else None,
            "task": "closed choice",
            "grade": f"grade{1 + grade % 12}",
            "subject": "natural science" if has_image else "social science" if hint == "" else "language science",
            "topic": topic,
            "category": topic,
            "skill": f"Tell the {topic}",
            "lecture": "",
            "solution": f"The answer is {choices[right]}.",
            "split": "test",
        }
        return pid

    for number, (family, group) in enumerate(take_groups(_GROUPS, scene_images, rng)):
        options = [question.answer for _, question in group]
        has_image = number % 2 == 0
        for right, (scene_image, question) in enumerate(group):
            hint = "" if has_image else f"The picture shows {full_caption(scene_image.scene)}."
            pid = add(question.text, options, right, hint=hint, has_image=has_image, topic=family, grade=number)
            if has_image:
                write_image(directory / _FOLDER / "images" / "test" / pid / "image.png", png(scene_image))
    for number in range(_SUMS):
        first, second, right = rng.randint(2, 9), rng.randint(2, 9), number % _LETTERS
        choices = [str(first + second + index - right) for index in range(_LETTERS)]
        add(
            f"What is {first} plus {second}?",
            choices,
            right,
            hint="",
            has_image=False,
            topic="sum",
            grade=number // _LETTERS,
        )
    write_json(directory / _PROBLEMS, problems)
    write_json(directory / _SPLITS, {"train": [], "val": [], "test": list(problems)})
    return LayoutSummary(rows={str(_PROBLEMS): len(problems)})
