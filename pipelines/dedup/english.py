"""Closed word classes of English and a word tokenizer, for pipelines/dedup/question_rules.py."""

import re
import unicodedata


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _lines(*lines: str) -> tuple[tuple[frozenset[str], ...], ...]:
    return tuple(tuple(frozenset(group.split("/")) for group in line.split()) for line in lines)


# fmt: off
YES, NO = _words("yes yeah yep true"), _words("no nope false")
NEGATIONS = _words("not without never")
ASKING = _words("what which who whom whose where when why how")
AUXILIARIES = _words(
    "is are was were be been being am do does did has have had can could will would shall should may might must"
)
ARTICLES = _words("a an the")
# Words that barely help to identify the fact: determiners, pronouns, light prepositions, degree words, copular verbs.
FUNCTION_WORDS = YES | NO | NEGATIONS | ASKING | AUXILIARIES | ARTICLES | _words(
    "this that these those it its he him his she her hers they them their theirs i me my we us our you your there "
    "here of in on at to from by with for as into onto about around near next out off up down than and or but if "
    "then so too also both either neither each any some all other others another else such own more "
    "most much many very just only look looks appear appears appearing seem seems seeming get got think"
)
# Words that refer to the image itself.
IMAGE_WORDS = _words(
    "photo photos photograph photographs picture pictures image images scene shot pictured shown show shows visible "
    "see seen present depicted"
)
# What a question word asks for and the answer supplies ("what COLOR is", "the NUMBER of"); content words elsewhere.
ASKED_WORDS = _words("color colors colour colours number amount total time called kind type sort")
QUANTITIES = _words("number amount")  # "what NUMBER of cups": how many
PARTICLES = _words("on off up down in out")  # content words at the end of a question: "is the lamp on"
KINDS = _words("kind kinds type types sort sorts piece pieces item items name names")  # "what KIND of animal is"
# Words that mark a question about whether something exists, not about what it is like.
ANYTHING = _words("there any anything anybody anyone some something somebody someone or you we")
PREPOSITIONS = _words("above over below under beneath underneath behind")  # take an object: "BEHIND the car"
NUMBERS = {
    "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7",
    "eight": "8", "nine": "9", "ten": "10", "eleven": "11", "twelve": "12",
}
PLURALS = {
    "men": "man", "women": "woman", "people": "person", "children": "child", "feet": "foot", "teeth": "tooth",
    "mice": "mouse", "geese": "goose", "knives": "knife", "leaves": "leaf", "shelves": "shelf", "wolves": "wolf",
    "buses": "bus", "busses": "bus", "bus": "bus", "glasses": "glasses", "grey": "gray",
}
# Each line holds groups of words, at most one of which is true of one thing. Words in a group are near-synonyms.
OPPOSITES = _lines(
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
# The same for yes-or-no questions only: elsewhere "is it thick" (no) must stay similar to "how thick is it" (thin).
ANTONYMS = _lines(
    "on off", "wet dry", "hot/warm cold/cool", "full empty", "clean dirty", "thick thin", "wide narrow",
    "happy sad", "alive dead", "asleep/sleeping awake", "moving/driving parked/stopped", "day/daytime night/nighttime",
)
# fmt: on
# Words that can refer to any of PEOPLE.
ANYONE = _words("person human someone somebody")
PEOPLE = ANYONE | _words("man woman boy girl guy lady gentleman male female child kid adult guys ladies")
COLOURS = frozenset().union(*OPPOSITES[0])
SIDES = frozenset({"left", "right"})
FRAMES = _words("side corner edge end part half area")  # "in the top left CORNER" means the same as "at the top left"
SPACE_LINE = 1  # directions, which are not properties: "a is left of b" and "b is right of a" state the same fact
ORDER_LINE, NUMBER_LINE = 2, -1  # the line of first … last; numbers are not in OPPOSITES and get a pseudo-line
GENDER_LINE = len(OPPOSITES) - 1
_GROUPS: dict[str, list[tuple[int, int]]] = {}
for _line, _groups in enumerate(OPPOSITES):
    for _number, _group in enumerate(_groups):
        for _word in sorted(_group):
            _GROUPS.setdefault(_word, []).append((_line, _number))

# Matches numbers, times, words, and symbols such as emoji, but not punctuation.
_TOKEN = re.compile(r"\d+(?:[:.,/]\d+)*|\w+|[^\w\s!-/:-@\[-`{-~¿¡«»“”‘’…–—]")


def tokens(text: str) -> list[str]:
    """Returns lower-case words, number words as digits and n't as not; drops punctuation, keeps other symbols."""
    text = unicodedata.normalize("NFKC", text).lower().replace("’", "'")
    text = re.sub(r"n't\b", " not", text)
    text = re.sub(r"'(s|re|ve|ll|d|m)\b", "", text)
    return [NUMBERS.get(token, token) for token in _TOKEN.findall(text)]


def singular(word: str) -> str:
    """Returns the singular of a regular English plural (`boxes` → `box`) or of a word in PLURALS; others unchanged."""
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
    """Returns whether two words exclude each other as properties of one thing, such as red and blue. Directions are
    not properties, so left and right do not count."""
    return any(
        line == other_line and group != other_group and line != SPACE_LINE
        for line, group in _GROUPS.get(word, ())
        for other_line, other_group in _GROUPS.get(other, ())
    )


def is_inverse(word: str, other: str) -> bool:
    """Returns whether affirming one word of a thing denies the other: wet and dry, left and right, red and blue; but
    not left and above, and not man and woman, which name the thing itself."""
    values, others = dict(_GROUPS.get(word, ())), dict(_GROUPS.get(other, ()))
    for line in values.keys() & others.keys() - {GENDER_LINE}:
        value, theirs = values[line], others[line]
        # The directions come in adjacent pairs: left, right, top, bottom, front, back.
        if value != theirs and (line != SPACE_LINE or value // 2 == theirs // 2):
            return True
    return any((word in one and other in another) or (word in another and other in one) for one, another in ANTONYMS)


def values_of(word: str) -> dict[int, int | str]:
    """Returns line of OPPOSITES → the word's group in it; a number gives NUMBER_LINE → the number."""
    values: dict[int, int | str] = dict(_GROUPS.get(word, ()))
    return {NUMBER_LINE: word} if word[0].isdigit() else values
