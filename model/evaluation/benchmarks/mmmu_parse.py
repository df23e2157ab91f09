"""Parses responses by MMMU's official rules (eval/eval_utils.py of its repository), reimplemented.

If no letter can be parsed, the official code draws a random letter, and this code returns none. Spaces around a choice
are stripped.
"""

import re
from collections.abc import Mapping, Sequence

_ENDS = ",.!?;:'"
_WORDS_OF_A_SENTENCE = 6  # the least words of a response that is searched for option texts
_LEADS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")  # these precede an answer
_TRIVIAL = {":", ",", ".", "!", "?", ";", "'"}
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),  # 1,200
    # Anchored at the first digit and without backtracking, because a long reply of only digits would take minutes.
    re.compile(r"-?(?<!\d)\d++(?:\.\d++)?[eE][+-]?\d++"),  # 1.2e3
    re.compile(r"-?(?:(?<!\d)\d++\.\d++|\.\d++|(?<!\d)\d++\b)(?![eE][+-]?\d+)(?![,\d])"),  # 1.2
)


def choose(response: str, options: Mapping[str, str]) -> str | None:
    """Returns the letter that a response means, or None if none can be parsed.

    options: text by letter. The rules, in this order: letters in parentheses; letters surrounded by spaces; in a longer
    response, option texts. If a rule finds several letters, the last one counts.
    """
    text = response.strip()
    for mark in _ENDS:  # the order is that of the official code: "A.," loses both marks, "A,." only one
        text = text.strip(mark)
    text = f" {text} "
    lower = text.lower()
    positions = {letter: text.rfind(f"({letter})") for letter in options}
    if max(positions.values(), default=-1) < 0:
        positions = {letter: text.rfind(f" {letter} ") for letter in options}
    if max(positions.values(), default=-1) < 0 and len(text.split()) >= _WORDS_OF_A_SENTENCE:
        positions = {letter: lower.rfind(option.lower()) if option else -1 for letter, option in options.items()}
    found = {letter: position for letter, position in positions.items() if position >= 0}
    return max(found, key=lambda letter: found[letter]) if found else None


def matches(response: str, truths: Sequence[str]) -> bool:
    """Returns whether an open response gives one of the correct answers: numbers in it are compared to two decimals,
    and a textual answer must be contained in one of its parts."""
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
    """Returns the candidate answers: for each line the shortest text after a word like "is", or the complete response
    if there is none; and the numbers in these texts."""
    text = response.strip().strip(".").lower()
    lines = text.split("\n")  # the official code also tries to split sentences, at capitals that lower-casing removed
    keys = []
    for number, line in enumerate(lines):
        leads = (*_LEADS, "=") if number == len(lines) - 1 else _LEADS
        shortest = ""
        for lead in leads:
            end = line.split(lead)[-1].strip()
            if lead in line and (not shortest or len(end) < len(shortest)):
                shortest = end  # an empty text replaces earlier ones and is replaced by later ones, as officially
        if shortest and shortest not in _TRIVIAL:
            keys.append(shortest)
    keys = keys or [text]
    return keys + [number for key in keys for pattern in _NUMBERS for number in pattern.findall(key)]


def _normal(text: str) -> list[str | float]:
    """Returns a number rounded to two decimals, or a text in lower case. A single character is padded with a space,
    before or after it, so that it does not match inside words."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]
