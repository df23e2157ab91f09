"""GQA's balanced training questions: `train_balanced_questions.json` maps question id → question."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.sources.base import Source, batches, named_files
from pipelines.sources.fields import Unique, text
from pipelines.sources.formats import json_stream

_files = named_files("train_balanced_questions.json")


def read(root: Path) -> Iterator[pa.RecordBatch]:
    """Yields one row per question, in file order, with the short answer. Images are `<imageId>.jpg`."""
    unique = Unique("question id")

    def row(member: tuple[str, Any]) -> tuple[str, str, str]:
        key, record = member
        unique.check(key)
        image = f"{text(record, 'imageId')}.jpg"
        return image, text(record, "question", "empty_question"), text(record, "answer", "empty_answer")

    yield from batches("open_question", json_stream.members(_files(root)[0]), row)


SOURCE = Source(
    "gqa",
    "open_question",
    _files,
    read,
    licence="annotations: CC BY 4.0; images from COCO and Flickr: the terms of Flickr and of the photographers apply",
)
