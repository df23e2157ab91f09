"""Matches free-form answers to lettered options by rule, for all benchmarks with such options."""

import re
from collections.abc import Sequence

from pipelines.schema import LETTERS

_LONE_LETTER = re.compile(r"\W*([A-Za-z])\W*")
# A capital letter that is a word by itself, except an "A" that is an article ("A dog").
_LETTER = re.compile(r"(?<![\w'’])(?:A(?! +(?!(?:is|and|or|because)\b)[a-z])|[B-Z])(?![\w'’])")


def match_option(text: str, options: Sequence[str]) -> str | None:
    """Returns the letter of the option that an answer means, or None if the rule finds none or more than one.

    The rules, in this order: the answer is a letter ("b", "(B)"); it is the text of an option; it contains exactly one
    option's letter ("B. a dog", "The answer is B."); it contains exactly one option's text. This follows the official
    matcher without its language model, but matches complete words only and ignores an option that is part of another.
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
    found = [letter for letter, option in texts.items() if option and _contains(answer, option)]
    outermost = [
        letter
        for letter in found
        if not any(texts[other] != texts[letter] and _contains(texts[other], texts[letter]) for other in found)
    ]
    return outermost[0] if len(outermost) == 1 else None


def _words(text: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", text.lower()))


def _contains(text: str, part: str) -> bool:
    return f" {part} " in f" {text} "
