"""Splits answers and options into words for `match_option`. Numbers, number words and names with symbols stay whole."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace

_DASHES = dict.fromkeys(map(ord, "‐‑‒–—−﹣－"), "-")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_RAISED = re.compile("[⁰¹²³⁴-⁹⁺⁻]+")
_BEFORE, _AFTER = "\"'([{“”‘’`*_¿¡", ".,;:!?)]}\"'“”‘’`*_…。"  # punctuation around a word
_TENS = {"twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"}
_UNITS = {
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
}  # fmt: skip
_SCALES = {"hundred", "thousand", "million", "billion", "trillion", "dozen"}
_PARTS = {
    "half", "halves", "third", "thirds", "quarter", "quarters", "fourth", "fourths", "fifth", "fifths", "sixth",
    "sixths", "eighth", "eighths", "tenth", "tenths",
}  # fmt: skip
_COUNTS = _TENS | _UNITS | _SCALES
_NUMBER = re.compile(r"[-+±]?[$€£¥]?[-+]?\.?\d.*")
_NAME = re.compile(r"[^\W\d_]+(?:\+\+|[+#])|[^\W\d_]{1,2}-")  # C++, C#, A+, A-
_WITH_UNIT = re.compile(r"([-+±]?\.?\d[\d.,/:]*)(°?[a-zµ]{1,4}(?:/[a-z]+)?|°)")
_ORDINALS = {"st", "nd", "rd", "th", "d", "s"}
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")


@dataclass(frozen=True)
class Word:
    """A word in comparable form. is_number: it stands for a number. ends: punctuation or nothing follows it."""

    text: str
    is_number: bool
    ends: bool


def plain(text: str) -> str:
    """Returns a text in one spelling: without case, with dashes, digits and spaces."""
    text = _RAISED.sub(lambda found: "^" + found[0].translate(_SUPERSCRIPTS), text)
    text = re.sub(r"(?<=\d)(?=[¼-¾⅐-⅞])", " ", text)
    text = unicodedata.normalize("NFKC", text).translate(_DASHES).replace("⁄", "/")
    return " ".join(text.lower().split())


def words(text: str) -> list[Word]:
    """Splits a text that was returned by `plain` at spaces. Only words without numbers are split further."""
    chunks = re.sub(r"(?<=\w)\s*([<>=≤≥≠×÷]+)\s*(?=[-+.\w])", r" \1 ", text).split(" ")
    found: list[Word] = []
    for index, chunk in enumerate(chunks):
        word = chunk.lstrip(_BEFORE).rstrip(_AFTER) or chunk.strip("\"'`_.,;:!?…")
        ends = index == len(chunks) - 1 or chunk.endswith(tuple(_AFTER))
        pieces = _pieces(word)
        found += [Word(piece, number, ends and piece is pieces[-1][0]) for piece, number in pieces]
    return _joined(found)


def _pieces(word: str) -> list[tuple[str, bool]]:
    """Returns the parts of a word, and whether each of them is a number."""
    if re.search(r"\d", word):
        word = _THOUSANDS.sub(lambda found: found[0].replace(",", ""), word)
        word = re.sub(r"(?<!\d)(?=\.\d)", "0", word)  # .5
        word = word[1:] if re.match(r"\+\d", word) else word
        unit = _WITH_UNIT.fullmatch(word)
        if unit and unit[2] not in _ORDINALS:
            return [(unit[1], True), (unit[2], False)]
        return [(word, _NUMBER.fullmatch(word) is not None)]
    if set(word.split("-")) & (_COUNTS | _PARTS) or word in _COUNTS:
        return [(word, True)]
    if "/" in word or _NAME.fullmatch(word) or not re.search(r"\w", word):
        return [(word, False)] if word else []
    return [(piece, False) for piece in re.findall(r"[^\W_]+", word)]


def _joined(found: Sequence[Word]) -> list[Word]:
    """Joins the words that make one number: `5 %`, `1 500`, `1 1/2`, `5 - 10`, `twenty two`, `two and a half`."""
    result: list[Word] = []
    index = 0
    while index < len(found):
        word, before = found[index], result[-1] if result else None
        following = [each.text for each in found[index : index + 3]]
        if before is None or before.ends or not (before.is_number or before.text in ("$", "€", "£", "¥", "±")):
            result.append(word)
        elif following[:3] == ["and", "a", "half"]:
            result[-1] = Word(f"{before.text}-and-a-half", True, found[index + 2].ends)
            index += 2
        elif word.text == "-" and index + 1 < len(found) and found[index + 1].is_number:
            result[-1] = replace(found[index + 1], text=f"{before.text}-{found[index + 1].text}")
            index += 1
        elif word.text in ("%", "percent") or following[:2] == ["per", "cent"]:
            index += word.text == "per"
            result[-1] = Word(f"{before.text}%", True, found[index].ends)
        elif word.text == "and" and len(following) > 1 and before.text.rpartition("-")[2] in _SCALES:
            if found[index + 1].is_number:
                index += 1
                word = found[index]
                result[-1] = replace(word, text=f"{before.text}-{word.text}")
            else:
                result.append(word)
        elif glue := _glue(before.text, word.text):
            result[-1] = Word(before.text + glue.strip("|") + word.text, True, word.ends)
        else:
            result.append(word)
        index += 1
    return [word for word in result if word.text != "-" or len(result) == 1]


def _glue(before: str, word: str) -> str:
    """Returns what joins two words to one number, "|" for nothing, or "" if they are two."""
    last = before.rpartition("-")[2]
    if before in ("$", "€", "£", "¥", "±"):
        return "|" if word[0].isdigit() else ""
    if re.fullmatch(r"[-+]?[$€£¥]?\d{1,3}(?:\d{3})*", before) and re.fullmatch(r"\d{3}", word):
        return "|"
    if re.fullmatch(r"[-+]?\d+", before) and re.fullmatch(r"\d+/\d+", word):
        return "_"
    if word in _SCALES or (last in _SCALES and word in _COUNTS):
        return "-"
    if word in _PARTS and (last in _COUNTS or before[0].isdigit()):
        return "-"
    return "-" if last in _TENS and word in _UNITS else ""
