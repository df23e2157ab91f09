"""Rules about turns that share words but state different facts, so that neither gives the other's answer away.

Each rule takes (question, answer, other question, other answer) and is symmetric. Together with
`question_rules.are_contradictory`, FACT_RULES are the reasons why a pair has similarity 0.
"""

from itertools import pairwise

from pipelines.dedup.english import is_inverse, singular
from pipelines.dedup.question_rules import ParsedAnswer, ParsedQuestion


def swap_roles(question: ParsedQuestion, _: ParsedAnswer, other: ParsedQuestion, __: ParsedAnswer) -> bool:
    """Returns whether a relation holds of one thing in one question and towards it in the other: "the vehicle behind
    the bus" / "the vehicle that the bus is behind", "who is looking at the man" / "who is the man looking at"."""
    return not question.objects.isdisjoint(other.subjects) or not question.subjects.isdisjoint(other.objects)


def deny_another(
    question: ParsedQuestion, answer: ParsedAnswer, other: ParsedQuestion, other_answer: ParsedAnswer
) -> bool:
    """Returns whether one turn affirms and the other denies, without a reason why one follows from the other: "is the
    sofa soft" yes / "is the sofa soft and clean" no.

    Such a reason is an opposite ("open" / "closed"), a negation, the same words in the same order, or a thing that the
    other turn takes for granted: "is there a truck" yes / "is the truck long" no.
    """
    if answer.polarity * other_answer.polarity != -1 or question.negated != other.negated:
        return False
    affirmed, denied = (question, other) if answer.polarity == 1 else (other, question)
    stated, asked = ([singular(word) for word in q.words] for q in (affirmed, denied))
    if stated == asked or (affirmed.asks_existence and not denied.asks_existence):
        return False
    if len(stated) == 2 and stated[::-1] in map(list, pairwise(asked)):  # "is the man tall" / "is the tall man old"
        return False
    return not any(is_inverse(word, their) for word in question.words for their in other.words)


def deny_one_of_several(
    question: ParsedQuestion, answer: ParsedAnswer, other: ParsedQuestion, other_answer: ParsedAnswer
) -> bool:
    """Returns whether one turn denies several things at once, of which the other does not exclude any: "is the stadium
    dirty and empty" no / "is the stadium empty or full" empty. If the other says "clean", the no follows from it."""
    if (answer.polarity == -1) == (other_answer.polarity == -1):
        return False
    denied, stated, told = (question, other, other_answer) if answer.polarity == -1 else (other, question, answer)
    if not denied.joins or stated.asks_existence:
        return False
    claims = (*stated.words, *told.words) if told.polarity == 1 else told.words
    return not any(is_inverse(word, their) for word in denied.words for their in claims)


def is_named_alike(
    question: ParsedQuestion, answer: ParsedAnswer, other: ParsedQuestion, other_answer: ParsedAnswer
) -> bool:
    """Returns whether both turns answer with the same time or number of several digits that counts nothing: "what
    number is on the bus" 193 / "number on the front" 193. Two things of one image are rarely named alike."""
    if question.measures or other.measures or answer.label != other_answer.label:
        return False
    return len(answer.label) > 1


FACT_RULES = (swap_roles, deny_another, deny_one_of_several)
