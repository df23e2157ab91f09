"""Matches free-form answers to lettered options by rule, for all benchmarks with such options."""

import itertools
import re
from collections.abc import Iterable, Sequence

from model.evaluation.scoring.option_words import Word, plain, words
from pipelines.schema import LETTERS

_LONE_LETTER = re.compile(r"""(?:- )?[\s"'“‘`(\[{*_]*([A-Za-z])[\s"'”’`)\]}*_.,:;!?]*""")
# A capital letter that is a word by itself and not part of a name (C++, A-, A/B, B-flat) or a unit (25 C), except an
# "A" that is an article ("A dog").
_LETTER = re.compile(
    r"(?<![\w'’/+#&°$-])(?<!\d )(?:A(?! +(?!(?:is|and|or|because)\b)[a-z])|[B-Z])(?![\w'’/+#&°]|-(?!\s+\w)|\.\w)"
)
_NOT_BEFORE = re.compile(
    r"(?:\bnot|\bnever|n['’]t|\bcannot|\bno)(?: (?:be|option|the|answer))*[ \"'(]*$", re.IGNORECASE
)
_NEGATIONS = {"not", "never", "cannot", "t", "without", "neither", "nor", "no", "isnt", "arent"}
_WEAK = {"a", "an", "the", "be", "is", "any", "really", "necessarily", "option"}  # between a negation and its word
_CLAUSES = {"there", "it", "he", "she", "they", "the", "this", "that", "these", "those", "i", "we", "you", "because"}


def match_option(text: str, options: Sequence[str]) -> str | None:
    """Returns the letter of the option that an answer means, or None if the rule finds none or more than one.

    The rules, in this order: the answer is verbatim an option, unless all options are letters, which are then labels
    as in the official scores; it is a letter ("b", "(B)"); it is the text of an option in another spelling; it contains
    exactly one option's letter ("B. a dog", "The answer is B."); it contains exactly one option's text. This follows
    the official matcher without its language model, but matches complete words and numbers only, ignores an option that
    is part of another, and does not take a denied option ("not red") for the answer.
    """
    letters = LETTERS[: len(options)]
    lone = _LONE_LETTER.fullmatch(text)
    all_letters = all(len(option.strip()) == 1 and option.strip().isalpha() for option in options if option)
    if not (lone and all_letters) and (same := _same(text.strip(), map(str.strip, options))):
        return letters[same[0]] if len(same) == 1 else None
    if lone:
        return lone[1].upper() if lone[1].upper() in letters else None
    if same := _same(plain(text), map(plain, options)):
        return letters[same[0]] if len(same) == 1 else None
    said = words(plain(text))
    texts = {letter: words(plain(option)) for letter, option in zip(letters, options, strict=True)}
    spelled = {letter: _texts(option) for letter, option in texts.items()}
    if equal := [letter for letter, option in spelled.items() if option and option == _texts(said)]:
        return equal[0] if len(equal) == 1 else None
    if len(lettered := _letters(text, letters)) == 1:
        return lettered.pop()
    pairs = (pair for option in texts.values() for pair in itertools.pairwise(option))
    with_nouns = any(first.is_number and not second.is_number for first, second in pairs)
    found = [letter for letter, option in texts.items() if _says(said, option, with_nouns)]
    outermost = [
        letter
        for letter in found
        if not any(spelled[other] != spelled[letter] and _at(spelled[other], spelled[letter]) for other in found)
    ]
    return outermost[0] if len(outermost) == 1 else None


def _same(answer: str, options: Iterable[str]) -> list[int]:
    return [index for index, option in enumerate(options) if answer and option == answer]


def _letters(text: str, letters: str) -> set[str]:
    found = (match for match in _LETTER.finditer(text) if match[0] in letters)
    return {match[0] for match in found if not _NOT_BEFORE.search(text[: match.start()])}


def _texts(option: Sequence[Word]) -> list[str]:
    return [word.text for word in option]


def _at(text: Sequence[str], part: Sequence[str]) -> list[int]:
    """Returns the positions at which a text contains a part."""
    return [at for at in range(len(text) - len(part) + 1) if text[at : at + len(part)] == part] if part else []


def _says(said: Sequence[Word], option: Sequence[Word], with_nouns: bool) -> bool:
    """Returns whether an answer states an option. with_nouns: options name what is counted ("2 dogs"), so that a number
    alone is not an answer that counts something."""
    if not any(any(map(str.isalnum, word.text)) for word in option):
        return False  # symbols occur in every text
    texts = _texts(said)
    for at in _at(texts, _texts(option)):
        end = at + len(option)
        before = at - 1
        while before >= 0 and not said[before].ends and texts[before] in _WEAK:
            before -= 1
        if before >= 0 and not said[before].ends and texts[before] in _NEGATIONS:
            continue
        follows = "" if said[end - 1].ends else texts[end]
        if _texts(option) == ["no"] and follows and follows not in _CLAUSES:
            continue  # "no cat"
        if with_nouns and len(option) == 1 and option[0].is_number and follows.isalpha():
            continue
        return True
    return False
