"""ScienceQA as written by LLaVA's convert_sqa_to_llava.py, `llava_train_QCM-LEPA.json`, parsed back into its fields.

An entry is a conversation of one turn. The prompt is "<question>\\nContext: <hint, or N/A>\\nOptions: (A) … (B) …",
followed by "\\n<image>" if there is an image. The answer is a lecture and an explanation, which are not used, and ends
with "###\\nANSWER: <letter>.". The fields equal those of scienceqa.py, except that the script collapses double spaces.
In a recipe, `scienceqa: {source: scienceqa_llava, …}` keeps the dataset's name and templates.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.schema import IMAGE_TOKEN, LETTERS
from pipelines.sources.base import Source, batches, named_files
from pipelines.sources.fields import Reject, Unique, clean, field, optional_text, show
from pipelines.sources.formats import json_stream
from pipelines.sources.formats.conversations import turns, without_placeholder

_files = named_files("llava_train_QCM-LEPA.json")
_ANSWER = re.compile(r"(?:^|\n)###\nANSWER: ([A-Z])\.$")
_NO_CONTEXT = "N/A"


def parse_prompt(prompt: str) -> tuple[str, str | None, list[str]]:
    """Splits a prompt into question, context or None, and options. Rejects: bad_prompt, empty_question, empty_choice,
    too_few_choices."""
    head, options_mark, options = prompt.rpartition("\nOptions: ")  # a question or hint may span several lines
    question, context_mark, context = head.partition("\nContext: ")
    if not options_mark or not context_mark:
        raise Reject("bad_prompt", f"expected a line 'Context: …' and then a line 'Options: …' in {show(prompt)}")
    context = context.strip()
    question = clean("the question", question.removeprefix("Question: "), "empty_question")
    return question, None if context == _NO_CONTEXT else context or None, _options(options)


def _options(text: str) -> list[str]:
    """Splits "(A) one (B) two" into one, two. Only the next letter begins an option, as a choice may hold brackets."""
    if not text.startswith("(A) "):
        raise Reject("bad_prompt", f"the options do not begin with (A): {show(text)}")
    found: list[str] = []
    rest = text.removeprefix("(A)")
    for letter in LETTERS[1:]:
        choice, mark, after = rest.partition(f" ({letter})")
        if not mark:
            break
        if f" ({letter})" in after:  # ambiguous: either may begin the option
            raise Reject("bad_prompt", f"({letter}) occurs more than once in the options {show(text)}")
        found.append(choice)
        rest = after
    if not found:
        raise Reject("too_few_choices", f"options are {show(text)}, but at least two are needed")
    return [clean(f"option {i}", choice, "empty_choice") for i, choice in enumerate([*found, rest])]


def parse_answer(answer: str) -> int:
    """Returns the index, from 0, of the letter that an answer ends with. Rejects: no_answer."""
    if found := _ANSWER.search(answer):
        return LETTERS.index(found[1])
    raise Reject("no_answer", f"expected '###' and 'ANSWER: <letter>.' at the end of {show(answer[-60:])}")


def read(root: Path) -> Iterator[pa.RecordBatch]:
    """Yields one row per entry, in file order. Images are `<id>/<file>`, below ScienceQA's `images/train`."""
    unique = Unique("id")

    def row(record: Any) -> tuple[Any, ...]:
        unique.check(field(record, "id", str))
        image = optional_text(record, "image")
        texts = turns(record)
        if len(texts) != 1:
            raise Reject("several_turns", f"conversations has {len(texts)} turns, not one")
        prompt, has_placeholder = without_placeholder(texts[0][0])
        if has_placeholder and image is None:
            raise Reject("missing_field", f"image is missing, but conversations[0].value contains {IMAGE_TOKEN}")
        question, context, options = parse_prompt(prompt)
        right = parse_answer(texts[0][1])
        if right >= len(options):
            letter = LETTERS[right]
            raise Reject("answer_index_out_of_range", f"the answer is {letter}, but there are {len(options)} options")
        return image, question, options, right, context

    yield from batches("multiple_choice", json_stream.array(_files(root)[0]), row)


SOURCE = Source("scienceqa_llava", "multiple_choice", _files, read, licence="CC BY-NC-SA 4.0")
