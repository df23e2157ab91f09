"""Tests of the rules that tell turns about different facts apart."""

import pytest

from pipelines.dedup.fact_rules import deny_another, deny_one_of_several, is_named_alike, swap_roles
from pipelines.dedup.question_rules import read_answer, read_question
from pipelines.dedup.roles import labels_of


@pytest.mark.parametrize(
    ("rule", "a", "b", "expected"),
    [
        (swap_roles, ("What is the vehicle behind the bus?", "car"), ("What vehicle is the bus behind?", "van"), True),
        (swap_roles, ("What is behind the bus?", "car"), ("What is the bus in front of?", "car"), False),
        (swap_roles, ("Who is following the man?", "a dog"), ("Who is the man following?", "a dog"), True),
        (swap_roles, ("What is the man holding?", "cup"), ("Who is holding the cup?", "man"), False),
        (deny_another, ("Is the car red and new?", "no"), ("Is the car red?", "yes"), True),
        (deny_another, ("Is the car open?", "no"), ("Is the car closed?", "yes"), False),
        (deny_another, ("Is there a car?", "yes"), ("Is the car red?", "no"), False),
        (deny_another, ("Is the man tall?", "yes"), ("Is the tall man old?", "no"), False),
        (deny_another, ("Is it red?", "yes"), ("Is it round?", "yes"), False),
        (deny_one_of_several, ("Is it wet and empty?", "no"), ("Is it empty or full?", "empty"), True),
        (deny_one_of_several, ("Is it wet and empty?", "no"), ("Is it empty or full?", "full"), False),
        (is_named_alike, ("What number is on the bus?", "193"), ("Number on the front?", "193"), True),
        (is_named_alike, ("What time is it?", "12:30"), ("What does the clock show?", "12:30"), True),
        (is_named_alike, ("What number is on the bus?", "2"), ("What number is on the cap?", "2"), False),
        (is_named_alike, ("How many people are there?", "12"), ("What number is on the bus?", "12"), False),
    ],
)
def test_fact_rules(rule, a, b, expected):
    parsed = [(read_question(question), read_answer(answer)) for question, answer in (a, b)]
    assert rule(*parsed[0], *parsed[1]) is expected
    assert rule(*parsed[1], *parsed[0]) is expected


@pytest.mark.parametrize(
    ("words", "labels"),
    [
        ("is this bus number 12", {"12"}),
        ("what does gate 12 show", {"12"}),
        ("are there 2 dogs", set()),
        ("is this bus 1 level", set()),
        ("does the house have 8 windows", set()),
    ],
)
def test_numbers_that_name_a_thing(words, labels):
    assert labels_of(words.split()) == labels
