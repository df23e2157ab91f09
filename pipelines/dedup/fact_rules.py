"""Rules about turns that share words but state different facts, so that neither gives the other's answer away.

Each rule takes (question, answer, other question, other answer) and is symmetric. Together with
`question_rules.are_contradictory` they are the reasons why a pair has similarity 0.
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


FACT_RULES = (swap_roles, deny_another)
