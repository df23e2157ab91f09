"""Tests of content words, slots, polarity, contradictions and restatements of questions and answers."""

import pytest

from pipelines.dedup.question_rules import are_contradictory, are_opposite_claims, new_words, read_answer, read_question


@pytest.mark.parametrize(
    ("question", "words", "slot"),
    [
        ("What kind of animal is on the rug?", ("rug",), ("animal",)),
        ("Which pieces of furniture are wooden?", ("wooden",), ("furniture",)),
        ("What vehicle is this?", (), ("vehicle",)),
        ("What is the name of the vehicle?", (), ("vehicle",)),
        ("What color shoes does the man have on?", ("shoes", "man"), ()),
        ("How many people are in the picture?", ("people",), ()),
        ("What number of zebras can be seen?", ("zebras",), ()),
        ("What is the number of cups on the table?", ("cups", "table"), ()),
        ("Is the bus number red?", ("bus", "number", "red"), ()),
        ("Is the lamp on?", ("lamp", "on"), ()),
        ("Are the cups the same color?", ("cups", "same", "color"), ()),
        ("猫は何匹ですか", ("猫は何匹ですか",), ()),
        ("", (), ()),
    ],
)
def test_content_words_and_slot_of_a_question(question, words, slot):
    read = read_question(question)
    assert (read.words, read.slot) == (words, slot)


@pytest.mark.parametrize(
    ("answer", "words", "polarity"),
    [
        ("Yes.", (), 1),
        ("no", (), -1),
        ("No, the man is asleep.", ("man", "asleep"), -1),
        ("On the table", ("table",), 0),
        ("There are two.", ("2",), 0),
        ("him", ("him",), 0),  # the only word
        ("", (), 0),
    ],
)
def test_content_words_and_polarity_of_an_answer(answer, words, polarity):
    read = read_answer(answer)
    assert (read.words, read.polarity) == (words, polarity)


def test_new_words_of_an_answer():
    question = read_question("Is the cat or the dog asleep?")
    assert new_words(question, read_answer("The dog is asleep on the rug")) == ("rug",)
    assert new_words(question, read_answer("the dog")) == ("dog",)  # a choice: the question contains every answer


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (("What color is the left cup?", "red"), ("What color is the right cup?", "red"), True),
        (("What is behind the car?", "dog"), ("What is in front of the car?", "cat"), True),
        (("What is behind the car?", "dog"), ("What is the car in front of?", "dog"), False),
        (("Is it a red circle?", "yes"), ("Is it a blue circle?", "no"), True),
        (("Is the cup white?", "no"), ("Is the cup pink?", "no"), True),
        (("Is the cup white?", "no"), ("Is the cup pink?", "yes"), False),  # one gives the other away
        (("Is the red cup by the blue plate?", "yes"), ("Is the blue cup by the red plate?", "yes"), True),
        (("Are there 2 cups?", "yes"), ("Are there 3 cups?", "yes"), True),
        (("Which food is cut?", "apple"), ("Which food is not cut?", "pear"), True),
        (("Is it open?", "yes"), ("Is it not open?", "no"), False),
        (("What does the man hold?", "cup"), ("What does the woman hold?", "cup"), True),
        (("Who is left of the woman?", "man"), ("Who is the man left of?", "woman"), False),  # the same fact
        (("How many flowers are in the vase?", "1"), ("How many vases are there?", "1"), True),
        (("How many levels does the bus have?", "2"), ("What is the number of buses?", "2"), True),
        (("How many people hold cups?", "2"), ("How many people are holding the cups?", "2"), False),
        (("How many laptop computers are there?", "2"), ("How many computers are there?", "2"), False),
        (("What color is the cup?", "red"), ("What color is the plate?", "blue"), False),  # merely different
        # A position of two words is one position, and one of the two words does not exclude it.
        (("What is at the top left?", "blue cross"), ("What is at the bottom right?", "green cup"), True),
        (("What is at the top left?", "blue cross"), ("What is at the bottom left?", "blue cross"), True),
        (("What is the man at the top left holding?", "cup"), ("What is the man on the left holding?", "cup"), False),
        (("Is the cup at the top left?", "yes"), ("Is the cup at the bottom right?", "no"), True),
        (("What is the fourth word?", "hot"), ("What is the fifth word?", "dog"), True),
        (("Who wears number 12?", "batter"), ("Who wears number 7?", "pitcher"), True),
        (("Is the red and white sign big?", "yes"), ("Is the white and red sign big?", "yes"), False),
        (("Is the red and white sign big?", "yes"), ("Is the blue and white sign big?", "yes"), True),
        (("Is it red or blue?", "red"), ("Is it red or green?", "red"), False),
        # A question that identifies its object only by position is not answered by a turn that does not name it.
        (("What is at the top left?", "green cup"), ("Is the fork left of the green cup?", "no"), True),
        (("What is in the bottom right corner?", "cup"), ("Is the cup right of the fork?", "yes"), True),
        (("What is in the bottom right corner?", "cup"), ("Where is the cup?", "bottom right"), False),
        (("What is at the top left?", "green cup"), ("Is there a green cup?", "yes"), False),  # gives that away
    ],
)
def test_contradictions(a, b, expected):
    questions, answers = [read_question(q) for q, _ in (a, b)], [read_answer(answer) for _, answer in (a, b)]
    assert are_contradictory(questions[0], answers[0], questions[1], answers[1]) is expected
    assert are_contradictory(questions[1], answers[1], questions[0], answers[0]) is expected


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (("Is the door open?", "no"), ("Is the door closed?", "yes"), True),
        (("Is the door open?", "yes"), ("Is the door closed?", "yes"), False),  # inconsistent answers
        (("Is the door open?", "yes"), ("Is the window closed?", "no"), False),
        (("Is the horse brown?", "yes"), ("Are the horses white?", "no"), True),
        (("Is it day?", "yes"), ("Is it night?", "no"), True),
        (("Are the lights on?", "Yes, they are."), ("Are the lights off?", "No."), True),
        (("Is the plate to the left of the cup?", "yes"), ("Is the plate right of the cup?", "no"), True),
        (("Is the plate behind the cup?", "yes"), ("Is the plate in front of the cup?", "no"), True),
        (("Is the plate left of the cup?", "yes"), ("Is the plate above the cup?", "no"), False),
        (("Is the plate left of the cup?", "yes"), ("Is the cup right of the plate?", "no"), False),
        (
            ("Is the man left of the tree holding a cup?", "yes"),
            ("Is the man right of the tree holding a cup?", "no"),
            False,
        ),
        (("Is the cup on the left red?", "yes"), ("Is the cup on the right red?", "no"), False),
        (("Is the left cup red?", "yes"), ("Is the right cup red?", "no"), False),
        (("Is the big cup red?", "yes"), ("Is the small cup red?", "no"), False),
        (("Is there a red cup?", "yes"), ("Is there a blue cup?", "no"), False),
        (("Is anything here red?", "yes"), ("Is anything here blue?", "no"), False),
        (("Is this man old?", "yes"), ("Is this woman old?", "no"), False),
        (("Is it a man?", "yes"), ("Is it a woman?", "no"), False),
        (("What is open?", "no"), ("What is closed?", "yes"), False),
        (("", "yes"), ("", "no"), False),
    ],
)
def test_restatements(a, b, expected):
    questions, answers = [read_question(q) for q, _ in (a, b)], [read_answer(answer) for _, answer in (a, b)]
    assert are_opposite_claims(questions[0], answers[0], questions[1], answers[1]) is expected
    assert are_opposite_claims(questions[1], answers[1], questions[0], answers[0]) is expected
