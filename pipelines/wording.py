"""What a question and its answer speak of: content words, the asked-for slot, and words that contradict each other.

Small closed classes of English, so no model is needed and every decision can be explained. In other languages every
word is a content word. Used by pipelines/dedup.py.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# fmt: off
YES, NO = _words("yes yeah yep true"), _words("no nope false")
NEGATIONS = _words("not without never")
ASKING = _words("what which who whom whose where when why how")
AUXILIARIES = _words(
    "is are was were be been being am do does did has have had can could will would shall should may might must"
)
ARTICLES = _words("a an the")
# Words that say little about which fact is meant: determiners, pronouns, light prepositions, degree, copular verbs.
FUNCTION_WORDS = YES | NO | NEGATIONS | ASKING | AUXILIARIES | ARTICLES | _words(
    "this that these those it its he him his she her hers they them their theirs i me my we us our you your there "
    "here of in on at to from by with for as into onto about around near next out off up down than and or but if "
    "then so too also both either neither each any some all other others another else such own more "
    "most much many very just only look looks appear appears appearing seem seems seeming get got think"
)
# Talk about the picture itself.
PICTURE_WORDS = _words(
    "photo photos photograph photographs picture pictures image images scene shot pictured shown show shows visible "
    "see seen present depicted"
)
# What an asking word asks for, so that the answer says it ("what COLOR is", "the NUMBER of"); content elsewhere.
ASKED_WORDS = _words("color colors colour colours number total time called kind type sort")
PARTICLES = _words("on off up down in out")  # content at the end: "is the lamp on"
KINDS = _words("kind kinds type types sort sorts piece pieces item items name names")  # "what KIND of animal is"
NUMBERS = {
    "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7",
    "eight": "8", "nine": "9", "ten": "10", "eleven": "11", "twelve": "12",
}
PLURALS = {
    "men": "man", "women": "woman", "people": "person", "children": "child", "feet": "foot", "teeth": "tooth",
    "mice": "mouse", "geese": "goose", "knives": "knife", "leaves": "leaf", "shelves": "shelf", "wolves": "wolf",
    "buses": "bus", "busses": "bus", "bus": "bus", "glasses": "glasses", "grey": "gray",
}
# Each line: groups of words of which at most one is true of one thing. Words in a group mean about the same.
OPPOSITES = tuple(
    tuple(frozenset(group.split("/")) for group in line.split())
    for line in (
        "red orange yellow/gold green blue purple/violet pink brown black white gray/grey/silver beige/tan",
        "left/leftmost right/rightmost top/upper/above/over bottom/lower/below/under/beneath/underneath "
        "front/foreground back/rear/behind/background middle/center/centre",
        "first second third fourth fifth sixth seventh eighth ninth tenth last/final",
        "north south east west",
        "big/large/huge/bigger/biggest/larger/largest small/little/tiny/smaller/smallest",
        "tall/taller/tallest short/shorter/shortest",
        "long/longer/longest short/shorter/shortest",
        "high/higher/highest low/lower/lowest",
        "old/older/oldest young/younger/youngest/new/newer/newest",
        "inside/indoors outside/outdoors",
        "open/opened closed/shut",
        "light dark",
        "nearest/closest farthest/furthest",
        "man/boy/guy/gentleman/male/he/his/him woman/girl/lady/female/she/her",
    )
)
# fmt: on
# "person" may be said of any of them.
ANYONE = _words("person human someone somebody")
PEOPLE = ANYONE | _words("man woman boy girl guy lady gentleman male female child kid adult guys ladies")
COLOURS = frozenset().union(*OPPOSITES[0])
SIDES = frozenset({"left", "right"})
FRAMES = _words("side corner edge end part half area")  # "in the top left CORNER" says no more than "at the top left"
_SPACE = 1  # the line above whose words are no properties: turned round, left and right state the same fact
_ORDER, _NUMBER = 2, -1  # the line of first and last; the numbers stand in none
_GROUPS: dict[str, list[tuple[int, int]]] = {}
for _line, _groups in enumerate(OPPOSITES):
    for _place, _group in enumerate(_groups):
        for _word in sorted(_group):
            _GROUPS.setdefault(_word, []).append((_line, _place))

# Numbers and times, words, and symbols such as emoji, but no punctuation.
_TOKEN = re.compile(r"\d+(?:[:.,/]\d+)*|\w+|[^\w\s!-/:-@\[-`{-~¿¡«»“”‘’…–—]")


@dataclass(frozen=True)
class Question:
    words: tuple[str, ...]  # content words, without the slot
    slot: tuple[str, ...]  # "animal" in "what kind of animal is …": true of any answer
    negated: frozenset[str]  # "cut" in "which food is not cut"
    marks: dict["Place", "Mark"]  # words that exclude others in the same place
    spot: frozenset["Value"]  # what "what is at the top left" is about, where nothing but a place or a rank tells it


@dataclass
class Mark:
    """Words of one line of OPPOSITES (or numbers) in one place of a question."""

    values: set[int | str]  # groups of that line, or numbers
    modifies: bool  # a content word follows at once: "left cup", unlike "is the cup on the left"
    is_choice: bool  # "left or right"

    def excludes(self, other: "Mark") -> bool:
        """Each says what the other does not: "top left" and "bottom left", but not "left" and "top left"."""
        if self.is_choice or other.is_choice:
            return self.values.isdisjoint(other.values)
        return bool(self.values - other.values) and bool(other.values - self.values)


Value = tuple[int, int | str]  # a line of OPPOSITES and a group of it; _NUMBER and a number
# The line of OPPOSITES or _NUMBER, and the content word that comes next, or if there is none the one before. For
# directions it matters which of the two it is, so the one before stands third.
Place = tuple[int, str, str]


@dataclass(frozen=True)
class Answer:
    words: tuple[str, ...]
    polarity: int  # 1 yes, −1 no, 0 neither


def tokens(text: str) -> list[str]:
    """Lower-case words, numbers as digits, n't as not; punctuation is left out, other symbols are kept."""
    text = unicodedata.normalize("NFKC", text).lower().replace("’", "'")
    text = re.sub(r"n't\b", " not", text)
    text = re.sub(r"'(s|re|ve|ll|d|m)\b", "", text)
    return [NUMBERS.get(token, token) for token in _TOKEN.findall(text)]


def singular(word: str) -> str:
    """A regular English plural without its ending: `boxes` → `box`. Other words as they are."""
    if word in PLURALS:
        return PLURALS[word]
    if len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies"):
        return word[:-3] + "y"
    if word.endswith(("sses", "shes", "ches", "xes", "zes")):
        return word[:-2]
    return word[:-1]


def is_opposite(word: str, other: str) -> bool:
    """Whether two words exclude each other as properties of one thing: red and blue, left and right."""
    return any(
        line == other_line and place != other_place and line != _SPACE
        for line, place in _GROUPS.get(word, ())
        for other_line, other_place in _GROUPS.get(other, ())
    )


def read_question(text: str) -> Question:
    words = tokens(text)
    slot = _slot(words)
    empty = FUNCTION_WORDS | PICTURE_WORDS
    if not ASKING.isdisjoint(words):
        empty |= ASKED_WORDS
    content = [k for k, word in enumerate(words) if k not in slot and word not in empty]
    if words and words[0] in AUXILIARIES and words[-1] in PARTICLES:
        content.append(len(words) - 1)
    return Question(
        words=tuple(words[k] for k in content),
        slot=tuple(words[k] for k in slot if words[k] not in empty | KINDS),
        negated=_negated(words, content),
        marks=_marks(words, content),
        spot=_spot([words[k] for k in content]),
    )


def read_answer(text: str) -> Answer:
    words = tokens(text)
    polarity = 1 if words[:1] and words[0] in YES else -1 if words[:1] and words[0] in NO else 0
    content = [word for word in words if word not in FUNCTION_WORDS]
    if not content and not polarity:
        content = [word for word in words if word not in ARTICLES]
    return Answer(tuple(content), polarity)


def new_words(question: Question, answer: Answer) -> tuple[str, ...]:
    """The answer's words that its own question does not say; all of them if it says them all (a choice)."""
    said = {singular(word) for word in question.words}
    new = tuple(word for word in answer.words if singular(word) not in said)
    return new or answer.words


def contradict(question: Question, answer: Answer, other: Question, other_answer: Answer) -> bool:
    """Whether two questions name opposite properties in the same place, so that they ask about different facts.

    "the left cup" / "the right cup", "is it white" / "is it pink", "behind the car" / "in front of the car", "not
    cut" / "cut"; but not "behind the car" / "the car in front of", nor opposite answers about one thing ("is it wet"
    yes / "is it dry" no), where one gives the other away.
    """
    if _misses_spot(question, answer, other, other_answer) or _misses_spot(other, other_answer, question, answer):
        return True
    opposite_answers = answer.polarity * other_answer.polarity == -1
    negated_once = question.negated ^ other.negated
    if negated_once and not opposite_answers:
        said_by_both = set.intersection(*({singular(word) for word in q.words} for q in (question, other)))
        if negated_once & said_by_both:
            return True
    for place in question.marks.keys() & other.marks.keys():
        mark, theirs = question.marks[place], other.marks[place]
        says = place[0] != _SPACE and not mark.modifies and not theirs.modifies  # what is said of one thing
        if mark.excludes(theirs) and not (says and opposite_answers):
            return True
    return False


def _misses_spot(question: Question, answer: Answer, other: Question, other_answer: Answer) -> bool:
    """Whether `question` asks what is in some place that the other turn does not name, and the other turn speaks of
    more than this one, so that neither gives the other away: "what is at the top left" / "is the cup left of the fork".
    """
    named = {value for word in other.words + other_answer.words for value in _values(word).items()}
    if question.spot <= named:
        return False
    said = {singular(word) for word in question.words + answer.words}
    return not said.issuperset(singular(word) for word in other.words + other_answer.words)


def _slot(words: Sequence[str]) -> range:
    """Places of the noun that names what is asked for: "what VEHICLE is …", "which KIND OF ANIMAL is …"."""
    asking = next((k for k, word in enumerate(words) if word in ("what", "which")), None)
    if asking is None or words[0] in AUXILIARIES:
        return range(0)
    for k in range(asking + 1, len(words) - 1):
        if words[k] in KINDS and words[k + 1] == "of":
            noun = k + 2
            while noun < len(words) and words[noun] in FUNCTION_WORDS - AUXILIARIES:
                noun += 1
            end = next((e for e in range(noun, len(words)) if words[e] in FUNCTION_WORDS), len(words))
            return range(k, min(end, noun + 3))
    if {"color", "colors", "colour", "colours"} & set(words):
        return range(0)  # the noun after it is what has the colour: "what color SHOES does …"
    verb = next((k for k in range(asking + 1, len(words)) if words[k] in AUXILIARIES), 0)
    return range(asking + 1, verb) if 0 < verb - asking - 1 <= 3 else range(0)


def _negated(words: Sequence[str], content: Sequence[int]) -> frozenset[str]:
    """The content word after each negation."""
    following = (next((c for c in content if c > k), None) for k, word in enumerate(words) if word in NEGATIONS)
    return frozenset(singular(words[c]) for c in following if c is not None)


def _marks(words: Sequence[str], content: Sequence[int]) -> dict[Place, Mark]:
    marks: dict[Place, Mark] = {}
    values = [_values(word) for word in words]
    for k, own in enumerate(values):
        for line, value in own.items():
            # "Top left" is one place, "red and white" one pattern: they belong to the next word of another kind.
            others = [c for c in content if line not in values[c]]
            after = next((singular(words[c]) for c in others if c > k), "")
            before = "" if after else next((singular(words[c]) for c in reversed(others) if c < k), "")
            # A property belongs to its noun on either side ("small lid", "lid that looks small"), a direction does not.
            place = (line, after, before) if line == _SPACE else (line, after or before, "")
            mark = marks.setdefault(place, Mark(set(), False, "or" in words))
            mark.values.add(value)
            mark.modifies |= k + 1 in content and k + 1 in others
    return marks


def _spot(content: Sequence[str]) -> frozenset[Value]:
    values = [_values(word) for word in content if word not in FRAMES]
    if not all({_SPACE, _ORDER, _NUMBER} & own.keys() for own in values):
        return frozenset()
    return frozenset((line, own[line]) for own in values for line in (_SPACE, _ORDER, _NUMBER) if line in own)


def _values(word: str) -> dict[int, int | str]:
    """Line → what the word says in it."""
    values: dict[int, int | str] = dict(_GROUPS.get(word, ()))
    return {_NUMBER: word} if word[0].isdigit() else values
