"""MMBench's dev file (tab-separated, images in base64), on held-out scenes, with the circular rows.

Questions come in groups of four pictures with one wording and the same four options, each right for one picture: an
answer that does not look at the picture is right once in four. The right letters of a group are A, B, C and D.
"""

import base64
import csv
import random
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipelines.sample.facts import FOUR_WAY, Question
from pipelines.sample.scenes import Picture
from pipelines.sample.writing import Account

_FILE = Path("MMBench") / "mmbench_dev.tsv"
_LETTERS = "ABCD"
Group = list[tuple[Picture, Question]]
_CIRCULAR_STEP = 1_000_000  # the official distance between the `index` of a question and of its rotations
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


def write_mmbench(directory: Path, pictures: Sequence[Picture], rng: random.Random) -> Account:
    """About as many questions as pictures, each asked four times with the options rotated."""
    groups = {family: groups_of_four(family, pictures, rng) for family in FOUR_WAY}
    rows: list[dict[str, str | int]] = []
    index = 0
    while groups and index < len(pictures):
        for family in list(groups):
            group = next(groups[family], None)
            if group is None:
                del groups[family]
                continue
            options = [question.answer for _, question in group]
            for picture, question in group:
                rows += _circular(index, family, picture, question, options)
                index += 1
    rows.sort(key=lambda row: int(row["index"]))
    path = directory / _FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, _COLUMNS, delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return Account(rows={str(_FILE): len(rows)})


def groups_of_four(family: str, pictures: Sequence[Picture], rng: random.Random) -> Iterator[Group]:
    """Four pictures with one question and four different answers, as long as there are any."""
    waiting: dict[str, dict[str, deque[tuple[Picture, Question]]]] = defaultdict(lambda: defaultdict(deque))
    for picture in rng.sample(list(pictures), len(pictures)):
        for question in FOUR_WAY[family](picture.scene, rng):
            waiting[question.text][question.answer].append((picture, question))
    texts = sorted(waiting)
    while texts:
        for text in rng.sample(texts, len(texts)):
            answers = [answer for answer, askable in waiting[text].items() if askable]
            if len(answers) < len(_LETTERS):
                texts.remove(text)
            else:
                yield [waiting[text][answer].popleft() for answer in rng.sample(answers, len(_LETTERS))]


def _circular(
    index: int, family: str, picture: Picture, question: Question, options: list[str]
) -> Iterator[dict[str, str | int]]:
    """The question and its three rotations."""
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
            "image": base64.b64encode(picture.jpeg).decode(),
            "split": "dev",
        }
