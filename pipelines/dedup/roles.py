"""Finds the roles of words in a question: what a relation points to, and numbers that are names. Used by
pipelines/dedup/question_rules.py."""

from collections.abc import Sequence

from pipelines.dedup.english import FUNCTION_WORDS, WORDS, singular, values_of
from pipelines.dedup.word_lists import DIRECTION

Value = tuple[str, int | str]  # (line of opposites, group in that line) or (NUMBER, number)
Relation = tuple[Value | str, str]  # (direction or verb in -ing, noun)


def relations_of(words: Sequence[str], content: Sequence[int]) -> tuple[frozenset[Relation], frozenset[Relation]]:
    """Returns the relations of a question, each with the noun that follows it, or else that precedes it."""
    objects: set[Relation] = set()
    subjects: set[Relation] = set()
    if WORDS.asking.isdisjoint(words):
        return frozenset(), frozenset()
    for k in content:
        direction = values_of(words[k]).get(DIRECTION)
        if direction is None and not (words[k].endswith("ing") and len(words[k]) > 4):
            continue
        relation = words[k] if direction is None else (DIRECTION, direction)
        after = next((singular(words[c]) for c in content if c > k), "")
        before = next((singular(words[c]) for c in reversed(content) if c < k), "")
        if after:
            objects.add((relation, after))
        elif before:
            subjects.add((relation, before))
    return frozenset(objects), frozenset(subjects)


def labels_of(words: Sequence[str]) -> frozenset[str]:
    """Returns the numbers that follow a noun and count nothing: "number 12", "what does gate 12 show", but not "is the
    bus one level"."""
    labels = set()
    for k, word in enumerate(words):
        if not word[0].isdigit() or k == 0 or words[k - 1] in FUNCTION_WORDS:
            continue
        following = words[k + 1] if k + 1 < len(words) else ""
        counts = following and following not in FUNCTION_WORDS and (word == "1" or singular(following) != following)
        if not counts:
            labels.add(word)
    return frozenset(labels)
