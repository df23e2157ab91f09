"""From a response to an answer, by MMMU's official rules (eval/eval_utils.py of its repository), in our own code.

Where the official code draws a letter at random because none can be read, there is no answer here. Blanks around a
choice are dropped.
"""

import re
from collections.abc import Mapping, Sequence

_ENDS = ",.!?;:'"
_WORDS_OF_A_SENTENCE = 6  # so many words, and an option's text is looked for in them
_LEADS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")  # the answer comes after
_TRIVIAL = {":", ",", ".", "!", "?", ";", "'"}
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),  # 1,200
    # From the beginning of their digits and without going back: else a reply of digits alone takes minutes.
    re.compile(r"-?(?<!\d)\d++(?:\.\d++)?[eE][+-]?\d++"),  # 1.2e3
    re.compile(r"-?(?:(?<!\d)\d++\.\d++|\.\d++|(?<!\d)\d++\b)(?![eE][+-]?\d+)(?![,\d])"),  # 1.2
)


def choose(response: str, options: Mapping[str, str]) -> str | None:
    """The letter that a response means, None if none can be read.

    options: text by letter. In this order: letters in brackets; letters that stand alone; in a longer response, texts
    of options. Of several, the one that comes last.
    """
    text = response.strip()
    for mark in _ENDS:  # in this order, as the official code: "A.," loses both, "A,." one
        text = text.strip(mark)
    text = f" {text} "
    lower = text.lower()
    places = {letter: text.rfind(f"({letter})") for letter in options}
    if max(places.values(), default=-1) < 0:
        places = {letter: text.rfind(f" {letter} ") for letter in options}
    if max(places.values(), default=-1) < 0 and len(text.split()) >= _WORDS_OF_A_SENTENCE:
        places = {letter: lower.rfind(option.lower()) if option else -1 for letter, option in options.items()}
    found = {letter: place for letter, place in places.items() if place >= 0}
    return max(found, key=lambda letter: found[letter]) if found else None


def matches(response: str, truths: Sequence[str]) -> bool:
    """Whether an open response gives one of the right answers: its parts are compared, numbers to two decimals, and
    of texts the right one must lie in the part."""
    right = [each for truth in truths for each in _normal(truth)]
    for part in _parts(response):
        for given in _normal(part):
            if isinstance(given, float):
                if given in right:
                    return True
            elif any(isinstance(each, str) and each in given for each in right):
                return True
    return False


def _parts(response: str) -> list[str]:
    """What may be the answer: of each line the shortest end after a word like "is", else all; and the numbers in it."""
    whole = response.strip().strip(".").lower()
    lines = whole.split("\n")  # the official code means to split sentences too, but seeks capitals in lower case
    keys = []
    for number, line in enumerate(lines):
        leads = (*_LEADS, "=") if number == len(lines) - 1 else _LEADS
        shortest = ""
        for lead in leads:
            end = line.split(lead)[-1].strip()
            if lead in line and (not shortest or len(end) < len(shortest)):
                shortest = end  # an empty one wins over those before it and gives way to those after: official too
        if shortest and shortest not in _TRIVIAL:
            keys.append(shortest)
    keys = keys or [whole]
    return keys + [number for key in keys for pattern in _NUMBERS for number in pattern.findall(key)]


def _normal(text: str) -> list[str | float]:
    """A number to two decimals; a text in lower case, a single character with a blank beside it, lest it be found
    everywhere."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]
