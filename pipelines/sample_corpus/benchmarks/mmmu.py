"""MMMU's Parquet files, one folder per subject, on held-out scenes.

Four images share one wording and its four options, as in mmbench.py. One subject has open questions about the printed
word. Another asks which of two images shows a thing, in both orders, so that each answer is equally often correct.
"""

import random
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.sample_corpus.world.four_way import groups_of_four
from pipelines.sample_corpus.world.scenes import SceneImage
from pipelines.sample_corpus.world.writing import LayoutSummary

_FOLDER = Path("MMMU")
_GROUPS = 4  # of four questions, per subject
_SUBJECTS = {"Art": "color", "Design": "shape", "Geography": "where", "Math": "count"}  # multiple choice: family
_OPEN, _TWO_IMAGES = "Literature", "Sociology"
_MOST_IMAGES = 7
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("id", "question", "options", "explanation")]
    + [(f"image_{index}", _IMAGE) for index in range(1, _MOST_IMAGES + 1)]
    + [(name, pa.string()) for name in ("img_type", "answer", "topic_difficulty", "question_type", "subfield")]
)
Row = dict[str, Any]


def write_mmmu(directory: Path, scene_images: Sequence[SceneImage], rng: random.Random) -> LayoutSummary:
    """Writes at most 96 questions of six subjects."""
    subjects: dict[str, list[Row]] = {}
    for subject, family in _SUBJECTS.items():
        subjects[subject] = []
        for group in islice(groups_of_four(family, scene_images, rng), _GROUPS):
            options = [question.answer for _, question in group]
            subjects[subject] += [
                _row([scene_image], f"<image 1> {question.text}", options, "ABCD"[options.index(question.answer)])
                for scene_image, question in group
            ]
    subjects[_OPEN] = [
        _row([scene_image], f"<image 1> {question.text}", [], question.answer)
        for group in islice(groups_of_four("word", scene_images, rng), _GROUPS)
        for scene_image, question in group
    ]
    subjects[_TWO_IMAGES] = list(islice(_of_two(scene_images, rng), 4 * _GROUPS))
    account = LayoutSummary()
    for subject, rows in subjects.items():
        for number, row in enumerate(rows, start=1):
            row |= {"id": f"validation_{subject}_{number}", "subfield": subject}
            for index in range(1, _MOST_IMAGES + 1):
                if image := row.get(f"image_{index}"):
                    image["path"] = f"{row['id']}_{index}.jpg"
        file = _FOLDER / subject / "validation-00000-of-00001.parquet"
        (directory / file).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, _SCHEMA), directory / file)
        account.rows[str(file)] = len(rows)
    return account


def _of_two(scene_images: Sequence[SceneImage], rng: random.Random) -> Iterator[Row]:
    shuffled = rng.sample(list(scene_images), len(scene_images))
    for one, other in zip(shuffled[::2], shuffled[1::2], strict=False):
        if only := sorted(one.scene.kinds - other.scene.kinds):
            text = f"<image 1> <image 2> Which image shows a {rng.choice(only)}?"
            options = ["<image 1>", "<image 2>"]
            yield _row([one, other], text, options, "A")
            yield _row([other, one], text, options, "B")


def _row(scene_images: Sequence[SceneImage], text: str, options: Sequence[str], answer: str) -> Row:
    return {
        "question": text,
        "options": repr(list(options)),
        "explanation": "",
        **{f"image_{index}": {"bytes": scene_image.jpeg} for index, scene_image in enumerate(scene_images, start=1)},
        "img_type": "['Drawings']",
        "answer": answer,
        "topic_difficulty": "Easy",
        "question_type": "multiple-choice" if options else "open",
    }
