"""The A-OKVQA training set, `aokvqa_v1p0_train.json`: one list of multiple-choice questions."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.sources.base import COCO_IMAGES, Source, batches, named_files
from pipelines.sources.fields import Unique, choices, field, text
from pipelines.sources.formats import json_stream

_files = named_files("aokvqa_v1p0_train.json")


def read(root: Path) -> Iterator[pa.RecordBatch]:
    """Yields one row per question, in file order. Images are `train2017/<12-digit id>.jpg`."""
    unique = Unique("question_id")

    def row(record: Any) -> tuple[Any, ...]:
        unique.check(field(record, "question_id", str))
        image = f"train2017/{field(record, 'image_id', int):012d}.jpg"
        question = text(record, "question", "empty_question")
        return image, question, *choices(record, "choices", "correct_choice_idx"), None

    yield from batches("multiple_choice", json_stream.array(_files(root)[0]), row)


SOURCE = Source("aokvqa", "multiple_choice", _files, read, licence=f"annotations: Apache-2.0; {COCO_IMAGES}")
