"""ScienceQA's `problems.json`, which maps problem id → question, choices, answer, hint, optional image and split.

Only the training split is used; rows of other splits are rejects (`other_split`), so that the ledger counts them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.sources.base import Source, batches, named_files
from pipelines.sources.fields import Reject, Unique, choices, field, optional_text, show, text, utf8
from pipelines.sources.formats import json_stream

_files = named_files("problems.json")


def read(root: Path) -> Iterator[pa.RecordBatch]:
    """Yields one row per problem, in file order. Images are `train/<id>/<file>`; problems without one are text only."""
    unique = Unique("problem id")

    def row(member: tuple[str, Any]) -> tuple[Any, ...]:
        key, record = member
        unique.check(key)
        split = text(record, "split")
        if split != "train":
            raise Reject("other_split", f"split is {show(split)}")
        file = optional_text(record, "image")
        hint = utf8("hint", field(record, "hint", str)).strip() if "hint" in record else ""
        question = text(record, "question", "empty_question")
        image = None if file is None else f"train/{utf8('problem id', key)}/{file}"
        return image, question, *choices(record, "choices", "answer"), hint or None

    yield from batches("multiple_choice", json_stream.members(_files(root)[0]), row)


SOURCE = Source("scienceqa", "multiple_choice", _files, read, licence="CC BY-NC-SA 4.0")
