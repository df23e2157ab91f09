"""Tests that paraphrases and given-away answers are duplicates, but similar wordings about different facts are not."""

import numpy as np
import pytest
from support.vectors import embed_turns

from pipelines.dedup.embeddings import Embeddings, embed_texts
from pipelines.dedup.settings import DEFAULT_THRESHOLD, Dedup
from pipelines.dedup.similarity import FEATURES, Similarity

EVERY_PAIR = Dedup(threshold=1e-6)  # embeds the contents of every pair, however small its similarity

SAME = [
    ("What color is the car?", "red", "Is the car red?", "yes"),
    ("What color is the car?", "red", "Where is the big red car?", "on the road"),
    ("How many cups are there?", "2", "How many cups do you see in the picture?", "2"),
    ("How many dogs are there?", "two", "Are there two dogs?", "yes"),
    ("Is there a red circle?", "yes", "Do you see a red circle?", "yes"),
    ("Where is the cat?", "on the sofa", "What is on the couch?", "a cat"),
    ("What kind of animal is this?", "cat", "Is this a cat?", "yes"),
    ("What is in front of the lamp?", "bed", "What is the bed in front of?", "lamp"),
    ("Is there a dog?", "yes", "What color is the dog?", "brown"),
    ("What sport is being played?", "tennis", "What game are they playing?", "tennis"),
    ("Is the floor wet?", "yes", "Is the floor dry?", "no"),
    ("Is the door open?", "no", "Is the door closed?", "yes"),
    ("Is the bus yellow?", "yes", "Is the bus blue?", "no"),
    ("Is the cup left of the plate?", "yes", "Is the cup right of the plate?", "no"),
    ("How many zebras are there?", "5", "What number of zebras can be seen?", "5"),
    ("What number is on the jersey?", "21", "What number is on the white jersey?", "21"),
    ("What is the man doing?", "He is riding a horse.", "Is the man riding a horse?", "Yes, he is riding a horse."),
]
DIFFERENT = [
    ("Is there a red circle?", "yes", "Is there a blue circle?", "yes"),
    ("Is there a red circle?", "yes", "Is there a blue circle?", "no"),
    ("Is there a car in the image?", "yes", "Is there a bus in the image?", "yes"),
    ("Is there a car in the image?", "no", "Is there a truck in the image?", "no"),
    ("How many cups?", "2", "How many plates?", "3"),
    ("How many flowers are in the vase?", "1", "How many vases are there?", "1"),
    ("How many cups are on the left?", "2", "How many cups are on the right?", "2"),
    ("How many cups are there?", "2", "How many plates are there?", "2"),
    ("How many people are standing?", "2", "How many people are sitting?", "2"),
    ("How many red cars are there?", "2", "How many blue cars are there?", "2"),
    ("How many cars?", "5", "How many red cars?", "2"),
    ("What color is the left cup?", "red", "What color is the right cup?", "red"),
    ("What color is the car on the left?", "red", "What color is the car on the right?", "red"),
    ("What color is the man's shirt?", "white", "What color are the man's pants?", "white"),
    ("What color is the computer?", "white", "What color is the computer mouse?", "white"),
    ("What color is the front wheel?", "black", "What color is the back wheel?", "black"),
    ("What is to the left of the lamp?", "bed", "What is to the right of the lamp?", "door"),
    ("What is in the top left corner?", "red circle", "What is in the bottom left corner?", "red circle"),
    ("What is at the bottom right?", "yellow triangle", "What is at the top left?", "blue cross"),
    ("What is at the bottom right?", "red circle", "Is the red circle right of the blue square?", "yes"),
    ("Is the red circle left of the blue square?", "yes", "Is the red circle above the blue square?", "yes"),
    ("Is the red cup left of the blue plate?", "yes", "Is the blue cup left of the red plate?", "yes"),
    ("Is the large ball red?", "yes", "Is the small ball red?", "yes"),
    ("Is the first car red?", "yes", "Is the second car red?", "yes"),
    ("Is the man wearing a hat?", "yes", "Is the woman wearing a hat?", "yes"),
    ("Is the man wearing a hat?", "yes", "Is the man wearing glasses?", "yes"),
    ("Is it sunny?", "yes", "Is it raining?", "no"),
    ("Is the horse white?", "no", "Is the horse black?", "no"),
    ("Which food is cut?", "apple", "Which food is not cut?", "apple"),
    ("What is on the table?", "cup", "What is on the chair?", "cat"),
    ("What material is the table made of?", "wood", "What material is the chair made of?", "wood"),
    ("Where is the cat?", "on the sofa", "Where is the dog?", "on the sofa"),
    ("What word is on the sign?", "STOP", "What number is on the bus?", "12"),
    ("What color is the ball?", "red", "How big is the ball?", "small"),
    ("What color is the dog?", "brown", "What is the dog doing?", "sleeping"),
    ("How many dogs are there?", "2", "Where are the dogs?", "on the grass"),
    ("What is the man wearing?", "a hat", "What is the man holding?", "a phone"),
]


@pytest.fixture(scope="module")
def embeddings():
    rows = SAME + DIFFERENT
    questions, answers = [t for r in rows for t in r[::2]], [t for r in rows for t in r[1::2]]
    return Embeddings(embed_turns(questions, answers, dedup=EVERY_PAIR))


def similarity_of(rows, embeddings):
    return Similarity([t for r in rows for t in r[::2]], [t for r in rows for t in r[1::2]], embeddings, "pair")


def test_a_turn_that_gives_the_answer_away_is_a_duplicate(embeddings):
    first = np.arange(0, 2 * len(SAME), 2)
    values = similarity_of(SAME, embeddings)(first, first + 1)
    missed = [(row, value) for row, value in zip(SAME, values, strict=True) if value < DEFAULT_THRESHOLD["pair"]]
    assert not missed


def test_similar_wordings_about_different_facts_are_not_duplicates(embeddings):
    first = np.arange(0, 2 * len(DIFFERENT), 2)
    values = similarity_of(DIFFERENT, embeddings)(first, first + 1)
    wrong = [(row, value) for row, value in zip(DIFFERENT, values, strict=True) if value >= DEFAULT_THRESHOLD["pair"]]
    assert not wrong


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Is there a {} in the image?", "yes"),
        ("How many {}s are there?", "2"),
        ("What color is the {}?", "red"),
        ("Where is the {}?", "on the left"),
        ("Is the {} red?", "yes"),
    ],
)
def test_the_same_question_about_different_things_is_not_a_duplicate(question, answer):
    things = [
        "bicycle",
        "car",
        "motorcycle",
        "bus",
        "train",
        "truck",
        "boat",
        "cat",
        "dog",
        "horse",
        "cow",
        "cup",
        "fork",
    ]
    things += [
        "knife",
        "spoon",
        "bowl",
        "chair",
        "couch",
        "bed",
        "table",
        "laptop",
        "mouse",
        "keyboard",
        "oven",
        "stove",
    ]
    questions, answers = [question.format(thing) for thing in things], [answer] * len(things)
    embeddings = Embeddings(embed_turns(questions, answers, dedup=EVERY_PAIR))
    first, second = np.triu_indices(len(things), 1)
    values = Similarity(questions, answers, embeddings, "pair")(first, second)
    wrong = [
        (things[i], things[j]) for i, j, v in zip(first, second, values, strict=True) if v >= DEFAULT_THRESHOLD["pair"]
    ]
    assert not wrong


def test_questions_about_different_positions_are_not_duplicates_if_only_questions_are_compared():
    corners = [f"What is at the {row} {side}?" for row in ("top", "bottom") for side in ("left", "right")]
    embeddings = Embeddings(embed_texts(corners, "all-MiniLM-L6-v2"))
    first, second = np.triu_indices(len(corners), 1)
    assert not Similarity(corners, ["cup", "fork", "cup", "plate"], embeddings, "question")(first, second).any()


def test_similarity_is_symmetric_and_between_0_and_1(embeddings):
    similarity = similarity_of(SAME + DIFFERENT, embeddings)
    indices = np.arange(2 * len(SAME + DIFFERENT))
    first, second = (side.ravel() for side in np.meshgrid(indices, indices))
    values = similarity(first, second)
    assert np.array_equal(values, similarity(second, first))
    assert values.min() >= 0 and values.max() <= 1


def test_values_above_the_bound_do_not_depend_on_it(embeddings):
    similarity = similarity_of(SAME + DIFFERENT, embeddings)
    indices = np.arange(2 * len(SAME + DIFFERENT))
    first, second = (side.ravel() for side in np.meshgrid(indices, indices))
    full, bounded = similarity(first, second), similarity(first, second, at_least=0.7)
    assert np.array_equal(full >= 0.7, bounded >= 0.7)
    assert np.array_equal(full[full >= 0.7], bounded[bounded >= 0.7])


def test_features_have_their_documented_values():
    questions = ["What color is the car?", "Is the big car red?", "Who is there?"]
    answers = ["red", "yes", "Anna"]
    embeddings = Embeddings(embed_turns(questions, answers, dedup=EVERY_PAIR))
    similarity = Similarity(questions, answers, embeddings, "pair")
    row = dict(zip(FEATURES, similarity.features(np.array([0]), np.array([1]))[0], strict=True))
    assert row["contained"] == 1  # "big car red" contains all of "car red"
    assert row["told"] == 1  # the other question contains "red"
    assert row["same question"] == pytest.approx(1 / 3, abs=0.05)  # of "big car red", only "car" is in the other
    other = dict(zip(FEATURES, similarity.features(np.array([0]), np.array([2]))[0], strict=True))
    assert other["contained"] == other["told"] == 0
