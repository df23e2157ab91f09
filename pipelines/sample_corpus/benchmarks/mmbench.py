"""MMBench's dev file (tab-separated, images in base64) on held-out scenes, with the rows of the circular evaluation.

Questions come in groups of four images (see four_way.py); the correct letters of a group are A, B, C and D.
"""

import base64
import csv
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipelines.sample_corpus.world.facts import FOUR_WAY, Question
from pipelines.sample_corpus.world.four_way import groups_of_four
from pipelines.sample_corpus.world.scenes import SceneImage
from pipelines.sample_corpus.world.writing import LayoutSummary

_FILE = Path("MMBench") / "mmbench_dev.tsv"
_LETTERS = "ABCD"
_CIRCULAR_STEP = 1_000_000  # the official difference in `index` between a question and its rotations
_COLUMNS = ["index", "question", "hint", *_LETTERS, "answer", "category", "l2-category", "image", "split"]
_SINGLE, _CROSS = "finegrained_perception (instance-level)", "finegrained_perception (cross-instance)"
_CATEGORIES = {  # family → MMBench's ability and the group it belongs to
    "color": ("attribute_recognition", _SINGLE),
    "shape": ("attribute_recognition", _SINGLE),
    "where": ("object_localization", _SINGLE),
    "what": ("spatial_relationship", _CROSS),
    "count": ("object_localization", _SINGLE),
    "word": ("ocr", _SINGLE),
}


def write_mmbench(directory: Path, scene_images: Sequence[SceneImage], rng: random.Random) -> LayoutSummary:
    """Writes about as many questions as there are images, each four times with rotated options."""
    groups = {family: groups_of_four(family, scene_images, rng) for family in FOUR_WAY}
    rows: list[dict[str, str | int]] = []
    index = 0
    while groups and index < len(scene_images):
        for family in list(groups):
            group = next(groups[family], None)
            if group is None:
                del groups[family]
                continue
            options = [question.answer for _, question in group]
            for scene_image, question in group:
                rows += _circular(index, family, scene_image, question, options)
                index += 1
    rows.sort(key=lambda row: int(row["index"]))
    path = directory / _FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, _COLUMNS, delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return LayoutSummary(rows={str(_FILE): len(rows)})


def _circular(
    index: int, family: str, scene_image: SceneImage, question: Question, options: list[str]
) -> Iterator[dict[str, str | int]]:
    """Yields the question and its three rotations."""
    category, group = _CATEGORIES[family]
    for turn in range(len(_LETTERS)):
        rotated = options[turn:] + options[:turn]
        yield {
            "index": index + turn * _CIRCULAR_STEP,
            "question": question.text,
            "hint": "",
            **dict(zip(_LETTERS, rotated, strict=True)),
            "answer": _LETTERS[rotated.index(question.answer)],
            "category": category,
            "l2-category": group,
            "image": base64.b64encode(scene_image.jpeg).decode(),
            "split": "dev",
        }
