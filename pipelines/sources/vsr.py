"""VSR's `random/train.jsonl`: statements about a relation, true or false, turned into yes/no questions.

The row's own `relation` tells where the predicate stands, so that "The dish is in this island." becomes "Is the dish
in this island?": the authors' code splits at every "is". Images are `<folder>/<file>` as in `image_link`.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.sources import json_stream
from pipelines.sources.base import Reject, Source, batches, field, named_files, show, text

_files = named_files("random/train.jsonl")
_BE = "is|are|was|were"
# Relations that are verbs: statement → question. {0} subject, {1} object.
_VERBS = {
    "contains": "Does {0} contain {1}?",
    "consists of": "Does {0} consist of {1}?",
    "has as a part": "Does {0} have {1} as a part?",
}
_ARTICLES = ("The ", "A ", "An ", "This ", "That ", "These ", "Those ", "There ")
_ANSWERS = ("no", "yes")


def question(statement: str, relation: str) -> str:
    """A statement as a yes/no question; `relation` is the part of it that the predicate begins with."""
    sentence = statement.strip().rstrip(".").rstrip()
    if sentence.startswith(_ARTICLES):
        sentence = sentence[0].lower() + sentence[1:]
    predicate = re.escape(relation.strip())
    if match := re.fullmatch(rf"(.+?)\s+({_BE})\s+({predicate}\b.*)", sentence, re.IGNORECASE | re.DOTALL):
        subject, verb, rest = match.groups()
        return f"{verb.capitalize()} {subject} {rest}?"
    if (form := _VERBS.get(relation.strip())) and (
        match := re.fullmatch(rf"(.+?)\s+{predicate}\s+(.+)", sentence, re.IGNORECASE | re.DOTALL)
    ):
        return form.format(*match.groups())
    return f"Is it true that {sentence}?"


def _row(record: Any) -> tuple[str, str, str]:
    image = "/".join(text(record, "image_link").split("/")[-2:])
    label = field(record, "label", int)
    if label not in (0, 1):
        raise Reject("bad_label", f"label is {show(label)}, not 0 or 1")
    statement = text(record, "caption", "empty_question")
    return image, question(statement, text(record, "relation")), _ANSWERS[label]


def read(root: Path) -> Iterator[pa.RecordBatch]:
    """Statements in file order, as questions."""
    yield from batches("open_question", json_stream.lines(_files(root)[0]), _row)


SOURCE = Source("vsr", "open_question", _files, read)
