"""OwlEval: open answers, ratings by people, and no score without ratings."""

import json
from pathlib import Path
from typing import Any

import pytest

from model.evaluation.asking.predictions import load
from model.evaluation.benchmarks import owleval
from model.evaluation.interface import EvaluationError

QUESTION = {"image": "1.jpg", "question": "What is it?", "ability": "a", "category": ["single_turn"]}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    return write(tmp_path / "questions.jsonl", [QUESTION | {"question_id": number} for number in range(1, 5)])


def test_without_ratings_there_is_no_score(questions, tmp_path):
    texts = ["a dog", "", "a cat and a dog"]
    rows = [QUESTION | {"question_id": i, "answer": text, "model_id": "m"} for i, text in enumerate(texts, start=1)]
    predictions = load(owleval.BENCHMARK, write(tmp_path / "m_answer.jsonl", rows), questions)
    scores = owleval.score(predictions)
    assert scores == {
        "num_questions": 4,
        "num_answered": 3,
        "without_answer": {"count": 1, "ids": ["4"]},
        "empty_answers": {"count": 1, "ids": ["2"]},
        "judge": "none: answers to this benchmark are rated by people, and no ratings were given",
        "words": {"mean": pytest.approx(7 / 3), "median": 2, "most": 5},
        "asked": "each question separately, including those of a conversation",
    }
    assert owleval.mark(predictions) == {}


def test_ratings_are_scored_as_shares(questions, tmp_path):
    ratings = write(
        tmp_path / "ratings.jsonl",
        [
            {"question_id": 1, "rating": "A", "rater": "x"},
            {"question_id": 1, "rating": "B", "rater": "y"},
            {"question_id": 2, "rating": "D", "rater": "x"},
            {"question_id": 3, "rating": "A", "rater": "x"},
        ],
    )
    answers = write(tmp_path / "a.jsonl", [{"question_id": i, "answer": "a dog"} for i in range(1, 5)])
    scores = owleval.score(load(owleval.BENCHMARK, ratings, questions, answers))
    assert scores["shares"] == {"A": 50, "B": 25, "C": 0, "D": 25} and scores["num_ratings"] == 4
    assert scores["rated_differently"] == {"count": 1, "ids": ["1"]} and scores["judge"] == "people"
    assert scores["unjudged"] == {"count": 1, "reasons": {"4": "no rating in the file"}}
    assert scores["num_answered"] == 4 and scores["words"]["mean"] == 2
    both = write(tmp_path / "both.jsonl", [{"question_id": 1, "answer": "a dog", "rating": "C"}])
    scores = owleval.score(load(owleval.BENCHMARK, both))
    assert scores["shares"]["C"] == 100 and scores["num_answered"] == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question_id": 1, "rating": "E"}], r"p\.jsonl:1: field `rating` must be A, B, C or D, found 'E'"),
        ([{"question_id": 1, "rating": "AB"}], "found 'AB'"),
        ([{"question_id": 1, "rating": "A"}] * 2, r"p\.jsonl:2: question_id 1 is rated twice by one rater"),
        ([{"question_id": 1, "answer": "x"}] * 2, r"p\.jsonl:2: duplicate question_id 1"),
        ([{"question_id": 1, "answer": "x"}, {"question_id": 1, "answer": "y"}], "1 is answered twice"),
        ([{"question_id": 1, "answer": 3}], "field `answer` must be a string, found 3"),
        ([{"question_id": 1, "text": "x"}], "has neither `answer` nor `rating`; it has question_id, text"),
        ([{"question_id": 9, "rating": "A"}], r"p\.jsonl: question_id 9 is not among the questions"),
        ([{"question_id": 9, "answer": "x"}], r"p\.jsonl: question_id 9 is not among the questions"),
        ([], "none of 4 questions can be scored"),
    ],
)
def test_invalid_predictions_are_errors(questions, tmp_path, rows, message):
    with pytest.raises(EvaluationError, match=message):
        owleval.score(load(owleval.BENCHMARK, write(tmp_path / "p.jsonl", rows), questions))


def test_invalid_questions_are_errors(tmp_path):
    path = tmp_path / "questions.jsonl"
    with pytest.raises(EvaluationError, match="1 duplicate question ids: 1"):
        owleval.read(write(path, [QUESTION | {"question_id": 1}] * 2), None)
    with pytest.raises(EvaluationError, match=r"questions\.jsonl:1: field `question` is empty"):
        owleval.read(write(path, [QUESTION | {"question_id": 1, "question": " "}]), None)
    with pytest.raises(EvaluationError, match="nowhere"):
        owleval.read(write(path, [QUESTION | {"question_id": 1}]), tmp_path / "nowhere")
