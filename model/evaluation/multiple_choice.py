"""From a free-form answer to an option, by rule: what the benchmarks with lettered options share."""

import re
from collections.abc import Sequence

from model.evaluation.base import LETTERS

_LONE_LETTER = re.compile(r"\W*([A-Za-z])\W*")
# A capital letter that stands alone; "A" before most words is an article ("A dog").
_LETTER = re.compile(r"(?<![\w'’])(?:A(?! +(?!(?:is|and|or|because)\b)[a-z])|[B-Z])(?![\w'’])")


def match_option(text: str, options: Sequence[str]) -> str | None:
    """The letter of the option that an answer means, or None if the rule finds none, or more than one.

    In this order: the answer is a letter ("b", "(B)"); the answer is an option's text; exactly one option's letter
    stands in it ("B. a dog", "The answer is B."); exactly one option's text stands in it. Like the official matcher
    without its language model, but whole words only, and the longer of two texts that lie in one another.
    """
    letters = LETTERS[: len(options)]
    if lone := _LONE_LETTER.fullmatch(text):
        return lone[1].upper() if lone[1].upper() in letters else None
    answer = _words(text)
    texts = dict(zip(letters, map(_words, options), strict=True))
    if equal := [letter for letter, option in texts.items() if option and option == answer]:
        return equal[0] if len(equal) == 1 else None
    lettered = {letter for letter in _LETTER.findall(text) if letter in letters}
    if len(lettered) == 1:
        return lettered.pop()
    found = [letter for letter, option in texts.items() if option and _holds(answer, option)]
    outer = [
        letter
        for letter in found
        if not any(texts[other] != texts[letter] and _holds(texts[other], texts[letter]) for other in found)
    ]
    return outer[0] if len(outer) == 1 else None


def _words(text: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", text.lower()))


def _holds(text: str, part: str) -> bool:
    return f" {part} " in f" {text} "
