"""Sample annotations on which templates are displayed: one set per task, and one per dataset with a different style."""

from typing import Any

import pyarrow as pa

from pipelines.examples.instructify import instructify
from pipelines.schema import ANNOTATIONS
from pipelines.templates.sets import Template

Row = dict[str, Any]

_BOX = [0.05, 0.3125, 0.4, 0.9871]

_ROWS: dict[str, list[Row]] = {
    "caption": [{"caption": "a brown dog asleep on a red sofa"}],
    "open_question": [
        {"question": "What colour is the dog?", "answer": "brown"},
        {"question": "Is the dog asleep?", "answer": "yes"},
    ],
    "multiple_choice": [
        {
            "question": "Why does the dog lie there?",
            "choices": ["it is soft", "it is cold", "it is wet", "it is loud"],
            "answer_index": 0,
            "context": None,
        },
        {
            "question": "Which way does heat flow?",
            "choices": ["from the dog to the sofa", "from the sofa to the dog"],
            "answer_index": 0,
            "context": "A dog is warmer than a sofa. Heat flows from warm things to cold ones.",
        },
    ],
    "referring": [{"phrase": "dog on the left", "box": _BOX}],
    "conversation": [
        {
            "turns": [
                {"user": "What is the dog doing?", "assistant": "It is sleeping on a sofa."},
                {"user": "Will it wake up soon?", "assistant": "The picture does not tell."},
            ]
        }
    ],
    "coyo100m": [{"caption": "Sofa Beds for Large Dogs | Washable, 3 Colours"}],
    "gqa": [
        {"question": "On which piece of furniture is the animal that is brown?", "answer": "sofa"},
        {"question": "Is there a cat to the left of the sofa?", "answer": "no"},
    ],
    "ocrvqa": [
        {"question": "What is the title of this book?", "answer": "Dogs at Rest: A Photographer's Year"},
        {"question": "Is this a cookbook?", "answer": "No"},
    ],
    "vsr": [{"question": "Is the dog on top of the sofa?", "answer": "yes"}],
    "refcoco+": [{"phrase": "brown dog, eyes closed", "box": _BOX}],
    "refcocog": [{"phrase": "a brown dog that is sleeping next to a striped cushion", "box": _BOX}],
    "visual_genome": [
        {"phrase": "A striped cushion.", "box": _BOX},
        {"phrase": "the dog is lying on a red sofa", "box": _BOX},
    ],
    "sharegpt": [{"turns": [{"user": "How long do dogs sleep?", "assistant": "About twelve hours a day."}]}],
}


def render(template: Template, task: str, dataset: str) -> list[tuple[str, str]]:
    """Returns (user, assistant) of a template for each sample annotation of the dataset, or else of its task."""
    rows = _ROWS.get(dataset, _ROWS[task])
    batch = pa.RecordBatch.from_pylist([{"row": i, **row} for i, row in enumerate(rows)], ANNOTATIONS[task])
    turns = instructify(batch, task, [template], dataset, seed=0)
    return list(zip(turns.user.to_pylist(), turns.assistant.to_pylist(), strict=True))


def format_turns(turns: list[tuple[str, str]], indent: str = "    ") -> str:
    """Formats turns for display, with the further lines of a text aligned below its first line."""
    lines = []
    for user, assistant in turns:
        for mark, text in ((">", user), ("<", assistant)):
            first, *rest = text.split("\n")
            lines.append(f"{indent}{mark} {first}".rstrip())
            lines += [f"{indent}  {line}" for line in rest]
    return "\n".join(lines)
