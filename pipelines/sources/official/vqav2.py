"""The VQAv2 training set, in its two official files. A row is a question with its `multiple_choice_answer`."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.sources.base import COCO_IMAGES, Source, batches, named_files
from pipelines.sources.fields import clean, field, text
from pipelines.sources.formats import json_stream
from pipelines.sources.formats.join import join

_files = named_files("v2_OpenEnded_mscoco_train2014_questions.json", "v2_mscoco_train2014_annotations.json")


def _question_id(record: Any) -> int:
    return field(record, "question_id", int)


def _answer(annotation: Any) -> str:
    # Interned to save memory: a few thousand answers recur, and each may have to wait for its question.
    return sys.intern(field(annotation, "multiple_choice_answer", str))


def _row(pair: tuple[Any, str]) -> tuple[str, str, str]:
    question, answer = pair
    return (
        f"COCO_train2014_{field(question, 'image_id', int):012d}.jpg",
        text(question, "question", "empty_question"),
        clean("multiple_choice_answer", answer, "empty_answer"),
    )


def read(root: Path) -> Iterator[pa.RecordBatch]:
    """Yields one row per question, in file order, then a reject per annotation without a question."""
    questions, annotations = _files(root)
    pairs = join(
        json_stream.array(questions, "questions"),
        json_stream.array(annotations, "annotations"),
        _question_id,
        _question_id,
        _answer,
        names=("question", "annotation"),
    )
    yield from batches("open_question", pairs, _row)


SOURCE = Source("vqav2", "open_question", _files, read, licence=f"annotations: CC BY 4.0; {COCO_IMAGES}")
