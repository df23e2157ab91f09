"""OCR-VQA's `dataset.json`, which maps book id → image URL, questions, answers and split (1: training).

A row is one question with its answer. Each book of another split becomes one reject (`other_split`).
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa

from pipelines.sources.base import Source, batches, named_files
from pipelines.sources.fields import Reject, Unique, clean, field, show, text, utf8
from pipelines.sources.formats import json_stream

_files = named_files("dataset.json")
_TRAIN = 1

Row = tuple[str, str, str]


def _image(key: str, record: Any) -> str:
    """Returns `<id><extension of the URL>`, the file name that the official download script uses."""
    address = text(record, "imageURL")
    try:
        extension = PurePosixPath(urlsplit(address).path).suffix
    except ValueError:  # brackets around an invalid host address
        extension = ""
    if not extension:
        raise Reject("bad_address", f"imageURL {show(address)} has no extension")
    return f"{utf8('book id', key)}{extension}"


def _rows(path: Path) -> Iterator[tuple[str, Any, Any] | Reject]:
    """Yields (image, question, answer), or one Reject for an entire book."""
    unique = Unique("book id")
    for key, record in json_stream.members(path):
        try:
            unique.check(key)
            split = field(record, "split", int)
            if split != _TRAIN:
                raise Reject("other_split", f"split is {split}")
            image = _image(key, record)
            questions, answers = field(record, "questions", list), field(record, "answers", list)
            if not questions or len(questions) != len(answers):
                raise Reject("unmatched_answers", f"{len(questions)} questions, {len(answers)} answers")
        except Reject as reject:
            yield reject
            continue
        for question, answer in zip(questions, answers, strict=True):
            yield image, question, answer


def _row(row: tuple[str, Any, Any]) -> Row:
    image, question, answer = row
    return image, clean("questions[…]", question, "empty_question"), clean("answers[…]", answer, "empty_answer")


def read(root: Path) -> Iterator[pa.RecordBatch]:
    yield from batches("open_question", _rows(_files(root)[0]), _row)


SOURCE = Source("ocrvqa", "open_question", _files, read)
