"""VSR's `random/train.jsonl`: true or false statements about a spatial relation, turned into yes/no questions.

The row's `relation` shows where the predicate begins, so that "The dish is in this island." becomes "Is the dish in
this island?"; the authors' code splits at every "is" instead. Images are `<folder>/<file>`, as in `image_link`.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.sources.base import COCO_IMAGES, Source, batches, named_files
from pipelines.sources.fields import Reject, field, show, text
from pipelines.sources.formats import json_stream

_files = named_files("random/train.jsonl")
_BE = "is|are|was|were"
# Relations that are verbs → the form of their question. {0}: Do or Does, {1}: subject, {2}: object.
_VERBS = {
    "contains": "{0} {1} contain {2}?",
    "consists of": "{0} {1} consist of {2}?",
    "has as a part": "{0} {1} have {2} as a part?",
}
_PLURALS = ("scissors", "skis")  # the COCO class names that take "are"; VSR's sentences always use "is"
# First words that are not names, so that they lose their capital letter inside a sentence.
_DETERMINER = re.compile(
    r"(The|An?|This|That|These|Those|There|All|Some|Any|Each|Every|Both|Several|Many|Most|No|Another|One|Two|Three|Four|"
    r"Five|Six|Seven|Eight|Nine|Ten|My|Your|His|Her|Its|Our|Their|It|He|She|They|We|You)\b"
)
_ANSWERS = ("no", "yes")


def question(statement: str, relation: str) -> str:
    """Turns a statement into a yes/no question. relation: the words of the statement that begin its predicate."""
    sentence = " ".join(statement.split()).rstrip(".").rstrip()
    if _DETERMINER.match(sentence):
        sentence = sentence[0].lower() + sentence[1:]
    predicate = re.escape(relation.strip())
    # The verb of a relative clause ("that is red") is not the verb of the sentence.
    if match := re.fullmatch(
        rf"(.+?)(?<! that)(?<! which)(?<! who)\s+({_BE})\s+({predicate}\b.*)", sentence, re.IGNORECASE
    ):
        subject, verb, rest = match.groups()
        if subject.endswith(_PLURALS):
            verb = {"is": "are", "was": "were"}.get(verb, verb)
        return f"{verb.capitalize()} {subject} {rest}?"
    if (form := _VERBS.get(relation.strip())) and (
        match := re.fullmatch(rf"(.+?)\s+{predicate}\s+(.+)", sentence, re.IGNORECASE)
    ):
        subject, rest = match.groups()
        return form.format("Do" if subject.endswith(_PLURALS) else "Does", subject, rest)
    return f"Is it true that {sentence}?"


def _row(record: Any) -> tuple[str, str, str]:
    image = "/".join(text(record, "image_link").split("/")[-2:])
    label = field(record, "label", int)
    if label not in (0, 1):
        raise Reject("bad_label", f"label is {show(label)}, not 0 or 1")
    statement = text(record, "caption", "empty_question")
    return image, question(statement, text(record, "relation")), _ANSWERS[label]


def read(root: Path) -> Iterator[pa.RecordBatch]:
    """Yields one row per statement, in file order, as a question."""
    yield from batches("open_question", json_stream.lines(_files(root)[0]), _row)


SOURCE = Source(
    "vsr", "open_question", _files, read, version=2, licence=f"annotations: see the dataset's own page; {COCO_IMAGES}"
)
