"""Parses questions and answers into content words, the slot that is asked for, and words that contradict each other.

The parser uses closed word classes of English (pipelines/dedup/english.py), so it needs no model and every decision can
be explained. Texts in other languages are not parsed. Used by pipelines/dedup/similarity.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from pipelines.dedup.english import FUNCTION_WORDS, WORDS, is_english, is_inverse, singular, tokens, values_of
from pipelines.dedup.roles import Relation, Value, labels_of, relations_of
from pipelines.dedup.word_lists import DIRECTION, GENDER, NUMBER, ORDER


@dataclass(frozen=True)
class ParsedQuestion:
    """A parsed question."""

    words: tuple[str, ...]  # content words, without the slot
    slot: tuple[str, ...]  # "animal" in "what kind of animal is …": applies to any answer
    negated: frozenset[str]  # "cut" in "which food is not cut"
    marks: dict["Place", "Exclusion"]  # words that exclude other words in the same position
    spot: frozenset[Value]  # the position in "what is at the top left", if only a position or rank identifies it
    measures: bool  # "how many", "how long", "the number of"
    counted: str  # "cup" in "how many cups are on the table"; "" if nothing is counted
    claim: tuple[str, ...]  # "closed" in "is the door closed": what a yes-or-no question claims about its subject
    is_closed: bool  # starts with an auxiliary: answered by yes, no or one of its own words
    joins: bool  # "is it red AND round": a no denies neither part
    asks_existence: bool  # "is there a car", "do you see a car"
    objects: frozenset[Relation]  # relations towards a noun: "behind the bus", "looking at the man"
    subjects: frozenset[Relation]  # relations that end with their noun: "the bus is behind", "the man is looking at"
    labels: frozenset[str]  # numbers that name a thing ("gate 12") instead of counting things
    is_english: bool


@dataclass
class Exclusion:
    """Words from one line of opposites (or numbers) in one position of a question."""

    values: set[int | str]  # groups of that line, or numbers
    modifies: bool  # a content word follows immediately: "left cup", unlike "is the cup on the left"
    is_choice: bool  # "left or right"

    def excludes(self, other: "Exclusion") -> bool:
        """Returns whether each has a value that the other lacks: "top left" / "bottom left", not "left" / "top left".
        For a choice, whether they have no value in common."""
        if self.is_choice or other.is_choice:
            return self.values.isdisjoint(other.values)
        return bool(self.values - other.values) and bool(other.values - self.values)

    def is_told(self, line: str, answer: "ParsedAnswer") -> bool:
        """Returns whether the answer contains all these values of the line."""
        return self.values <= {values[line] for values in map(values_of, answer.words) if line in values}


# (line of opposites or NUMBER, next content word, previous content word). If there is no next word, the previous
# one takes its position, except for directions, where the two differ in meaning.
Place = tuple[str, str, str]


@dataclass(frozen=True)
class ParsedAnswer:
    """A parsed answer."""

    words: tuple[str, ...]  # content words
    polarity: int  # 1 yes, −1 no, 0 neither
    label: str  # a number that no word follows: "12" in "number 12"; a name if the question does not ask for a quantity


def read_question(text: str) -> ParsedQuestion:
    """Parses a question."""
    words = tokens(text)
    counting = _counting(words)
    slot = range(0) if counting else _slot(words)
    empty = FUNCTION_WORDS | WORDS.image
    if not WORDS.asking.isdisjoint(words):
        empty |= WORDS.asked
    content = [k for k, word in enumerate(words) if k not in slot and word not in empty]
    if words and words[0] in WORDS.auxiliaries and words[-1] in WORDS.particles:
        content.append(len(words) - 1)
    objects, subjects = relations_of(words, content)
    is_closed = bool(words) and words[0] in WORDS.auxiliaries
    return ParsedQuestion(
        words=tuple(words[k] for k in content),
        slot=tuple(words[k] for k in slot if words[k] not in empty | WORDS.kinds),
        negated=_negated(words, content),
        marks=_marks(words, content),
        spot=_spot([words[k] for k in content]),
        measures=bool(counting) or "how" in words,
        counted=_counted(words, counting),
        claim=_claim(words, content),
        is_closed=is_closed,
        joins=is_closed and "and" in words,
        asks_existence=is_closed and not (WORDS.anything - {"or"}).isdisjoint(words),
        objects=objects,
        subjects=subjects,
        labels=labels_of(words),
        is_english=is_english(words),
    )


def read_answer(text: str) -> ParsedAnswer:
    """Parses an answer."""
    words = tokens(text)
    polarity = (
        1 if words[:1] and words[0] in WORDS.affirmative else -1 if words[:1] and words[0] in WORDS.negative else 0
    )
    content = [word for word in words if word not in FUNCTION_WORDS]
    if not content and not polarity:
        content = [word for word in words if word not in WORDS.articles]
    return ParsedAnswer(tuple(content), polarity, content[-1] if content and content[-1][0].isdigit() else "")


def new_words(question: ParsedQuestion, answer: ParsedAnswer) -> tuple[str, ...]:
    """Returns the answer's words that its question does not contain, or all of them if it contains all (a choice)."""
    in_question = {singular(word) for word in question.words}
    new = tuple(word for word in answer.words if singular(word) not in in_question)
    return new or answer.words


def are_contradictory(
    question: ParsedQuestion, answer: ParsedAnswer, other: ParsedQuestion, other_answer: ParsedAnswer
) -> bool:
    """Returns whether two questions name opposite properties in the same position and so ask for different facts.

    Examples: "the left cup" / "the right cup", "is it white" / "is it pink", "behind the car" / "in front of the car",
    "not cut" / "cut", "how many cups are on the plate" / "how many plates". Counterexamples: "behind the car" / "the
    car in front of", "who is behind the man" (woman) / "who is the woman behind" (man), and opposite answers about one
    object ("is it wet" yes / "is it dry" no), where one turn gives the other away.
    """
    if _misses_spot(question, answer, other, other_answer) or _misses_spot(other, other_answer, question, answer):
        return True
    if _counts_another(question, other) or _counts_another(other, question):
        return True
    opposite_answers = answer.polarity * other_answer.polarity == -1
    negated_once = question.negated ^ other.negated
    if negated_once and not opposite_answers:
        in_both = set.intersection(*({singular(word) for word in q.words} for q in (question, other)))
        if negated_once & in_both:
            return True
    for place in question.marks.keys() & other.marks.keys():
        mark, theirs = question.marks[place], other.marks[place]
        if place[0] == GENDER and mark.is_told(GENDER, other_answer) and theirs.is_told(GENDER, answer):
            continue
        is_claim = place[0] != DIRECTION and not mark.modifies and not theirs.modifies  # claims about one object
        if mark.excludes(theirs) and not (is_claim and opposite_answers):
            return True
    return False


def are_opposite_claims(
    question: ParsedQuestion, answer: ParsedAnswer, other: ParsedQuestion, other_answer: ParsedAnswer
) -> bool:
    """Returns whether two yes-or-no questions make opposite claims about one object and have opposite answers.

    "is the door open" yes / "is the door closed" no, but not "is there a red cup" yes / "is there a blue cup" no, which
    are two objects.
    """
    if answer.polarity * other_answer.polarity != -1 or question.negated != other.negated:
        return False
    ours, theirs = ([singular(word) for word in q.words] for q in (question, other))
    different = [k for k, (word, their) in enumerate(zip(ours, theirs, strict=False)) if word != their]
    if len(ours) != len(theirs) or len(different) != 1:
        return False
    word, their = question.words[different[0]], other.words[different[0]]
    return word in question.claim and their in other.claim and is_inverse(word, their)


def _counts_another(question: ParsedQuestion, other: ParsedQuestion) -> bool:
    """Returns whether the other question counts something that this one mentions but does not count."""
    if not question.counted or not other.counted or question.counted == other.counted:
        return False
    return other.counted in {singular(word) for word in question.words}


def _misses_spot(
    question: ParsedQuestion, answer: ParsedAnswer, other: ParsedQuestion, other_answer: ParsedAnswer
) -> bool:
    """Returns whether `question` asks what is in a position that the other turn does not name, and the other turn has
    words that this one lacks, so that neither gives the other away: "what is at the top left" / "is the cup left of the
    fork"."""
    named = {value for word in other.words + other_answer.words for value in values_of(word).items()}
    if question.spot <= named:
        return False
    ours = {singular(word) for word in question.words + answer.words}
    return not ours.issuperset(singular(word) for word in other.words + other_answer.words)


def _slot(words: Sequence[str]) -> range:
    """Returns the positions of the noun that is asked for: "what VEHICLE is …", "which KIND OF ANIMAL is …"."""
    asking = next((k for k, word in enumerate(words) if word in ("what", "which")), None)
    if asking is None or words[0] in WORDS.auxiliaries:
        return range(0)
    for k in range(asking + 1, len(words) - 1):
        if words[k] in WORDS.kinds and words[k + 1] == "of":
            noun = k + 2
            while noun < len(words) and words[noun] in FUNCTION_WORDS - WORDS.auxiliaries:
                noun += 1
            end = next((e for e in range(noun, len(words)) if words[e] in FUNCTION_WORDS), len(words))
            return range(k, min(end, noun + 3))
    if {"color", "colors", "colour", "colours"} & set(words):
        return range(0)  # the noun after "color" names the object that has it: "what color SHOES does …"
    verb = next((k for k in range(asking + 1, len(words)) if words[k] in WORDS.auxiliaries), 0)
    return range(asking + 1, verb) if 0 < verb - asking - 1 <= 3 else range(0)


def _counting(words: Sequence[str]) -> range:
    """Returns the positions of "how many" or "number of"."""
    for k, (word, following) in enumerate(pairwise(words)):
        if (word == "how" and following == "many") or (word in WORDS.quantities and following == "of"):
            return range(k, k + 2)
    return range(0)


def _counted(words: Sequence[str], counting: range) -> str:
    """Returns the noun after these words in the singular; of several nouns, the first plural ("laptop COMPUTERS")."""
    if not counting:
        return ""
    start = counting.stop
    while start < len(words) and words[start] in (FUNCTION_WORDS - WORDS.auxiliaries) | WORDS.kinds | {"different"}:
        start += 1
    noun = ""
    for word in words[start:]:
        if word in FUNCTION_WORDS or (noun and word.endswith("ing")):
            break
        noun = singular(word)
        if noun != word:
            break
    return noun


def _claim(words: Sequence[str], content: Sequence[int]) -> tuple[str, ...]:
    """Returns what a yes-or-no question claims about its subject: its last word, a direction, or nothing."""
    if not content or words[0] not in WORDS.auxiliaries or not WORDS.anything.isdisjoint(words):
        return ()
    last = content[-1]
    claim = [words[last]] if last == len(words) - 1 else []
    # "Is the cup left OF the plate" or "behind the plate", but not "is the cup on the left red".
    if len(content) > 1:
        direction = content[-2]
        if words[direction] in WORDS.prepositions or words[direction + 1] == "of":
            claim.append(words[direction])
    return tuple(claim)


def _negated(words: Sequence[str], content: Sequence[int]) -> frozenset[str]:
    """Returns the content word after each negation."""
    following = (next((c for c in content if c > k), None) for k, word in enumerate(words) if word in WORDS.negations)
    return frozenset(singular(words[c]) for c in following if c is not None)


def _marks(words: Sequence[str], content: Sequence[int]) -> dict[Place, Exclusion]:
    marks: dict[Place, Exclusion] = {}
    values = [values_of(word) for word in words]
    for k, own in enumerate(values):
        for line, value in own.items():
            # "Top left" is one position and "red and white" one pattern: they belong to the next word of another kind.
            others = [c for c in content if line not in values[c]]
            after = next((singular(words[c]) for c in others if c > k), "")
            before = "" if after else next((singular(words[c]) for c in reversed(others) if c < k), "")
            # A property may come before or after its noun ("small lid", "lid that looks small"); a direction may not.
            place = (line, after, before) if line == DIRECTION else (line, after or before, "")
            mark = marks.setdefault(place, Exclusion(set(), False, "or" in words))
            mark.values.add(value)
            mark.modifies |= k + 1 in content and k + 1 in others
    return marks


def _spot(content: Sequence[str]) -> frozenset[Value]:
    """Returns the positions, ranks and numbers of a question with no other content words, otherwise an empty set."""
    values = [values_of(word) for word in content if word not in WORDS.frames]
    if not all({DIRECTION, ORDER, NUMBER} & own.keys() for own in values):
        return frozenset()
    return frozenset((line, own[line]) for own in values for line in (DIRECTION, ORDER, NUMBER) if line in own)
