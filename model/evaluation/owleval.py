"""OwlEval: 82 open questions on 50 images, whose answers people rate. (Ye et al., "mPLUG-Owl", 2023)

Official files: `questions.jsonl` (image, question_id, question, …) beside the folder `cases` of images; answers as JSON
lines (question_id, answer, …). There is no automatic score. Ratings are JSON lines with question_id and rating, A (the
best) to D, and, where several people rated, `rater`; they may stand in the lines of the answers. A verdict is a list of
them.
"""

import statistics
from collections import Counter
from pathlib import Path
from typing import Any

from model.evaluation.base import (
    Answer,
    Benchmark,
    EvaluationError,
    Judging,
    Mark,
    Predictions,
    Question,
    named,
    percent,
    unique,
)
from model.evaluation.files import image_of, image_root
from model.evaluation.jsonl import read_rows
from model.evaluation.judging import counts

RATINGS = "ABCD"
_FILE = "questions.jsonl"
_ID = {"question_id": (int, str)}
_NOT_RATED = "none: people rate this benchmark's answers, and no rating was given"


def read(path: Path, images: Path | None) -> list[Question]:
    """The questions of `questions.jsonl`, or of the folder that holds it; ids are the question_id. images: the folder
    of the image files, None where only scores are wanted."""
    file = path / _FILE if path.is_dir() else path
    root = image_root(images)
    questions = []
    for where, row in read_rows(file, {**_ID, "image": str, "question": str}):
        if not row["question"].strip():
            raise EvaluationError(f"{where}: question is empty")
        fields = {"question": row["question"].strip(), "image": row["image"]}
        questions.append(Question(str(row["question_id"]), fields, None, images=image_of(root, row["image"])))
    return unique(questions, file)


def read_predictions(path: Path, truth: Path | None, questions: Path | None) -> Predictions:
    """Answers, ratings or both in one file. `truth`: the official questions, without which they are those that the
    file names. `questions`, for a file of ratings alone: the answers that were rated, where they are wanted too."""
    answers: dict[str, Answer] = {}
    ratings: dict[str, list[str]] = {}
    raters: set[tuple[str, str]] = set()
    for where, row in read_rows(path, _ID):
        key, answer, rating = str(row["question_id"]), row.get("answer"), row.get("rating")
        if answer is None and rating is None:
            raise EvaluationError(f"{where}: has neither answer nor rating; it has {', '.join(row)}")
        if rating is not None:
            if rating not in tuple(RATINGS):
                raise EvaluationError(f"{where}: rating is {rating!r}, must be A, B, C or D")
            rater = (key, str(row.get("rater", "")))
            if rater in raters:
                raise EvaluationError(f"{where}: question_id {key} is rated twice by one rater: name them as `rater`")
            raters.add(rater)
            ratings.setdefault(key, []).append(rating)
        if answer is not None:
            if not isinstance(answer, str):
                raise EvaluationError(f"{where}: answer is {answer!r}, must be a text")
            if key in answers and answers[key].text != answer:
                raise EvaluationError(f"{where}: question_id {key} is answered twice")
            if key in answers and rating is None:
                raise EvaluationError(f"{where}: question_id {key} stands twice")
            answers[key] = Answer(answer)
    if questions is not None and not answers:
        answers = dict(read_predictions(questions, None, None).answers)
    asked = [Question(key, {}, None) for key in {**answers, **ratings}] if truth is None else read(truth, None)
    known = {question.id for question in asked}
    if foreign := sorted({*answers, *ratings} - known):
        raise EvaluationError(
            f"{path}: question_id {', '.join(foreign[:5])} is none of the questions: of another version?"
        )
    if not ratings:
        return Predictions(unique(asked, path), answers)
    unrated = {question.id: "no rating in the file" for question in asked if question.id not in ratings}
    return Predictions(unique(asked, path), answers, judging=Judging({"people": path.name}, ratings, unrated))


def mark(predictions: Predictions) -> dict[str, Mark]:
    """None: there is no right answer, and a rating is no share of one."""
    return {}


def score(predictions: Predictions) -> dict[str, Any]:
    """The shares of the ratings in percent, where people gave some; else no score, but how many answers there are, how
    many are empty, and how long they are (in words)."""
    told = counts(predictions)
    judging = predictions.judging
    told["judge"] = _NOT_RATED if judging is None else "people"
    words = [len(answer.text.split()) for answer in predictions.answers.values() if answer.text is not None]
    if words:
        told["words"] = {"mean": statistics.fmean(words), "median": statistics.median(words), "most": max(words)}
    told["asked"] = "each question by itself, those of a conversation too"
    if judging is None:
        return told
    given = Counter(rating for ratings in judging.verdicts.values() for rating in ratings)
    several = [key for key, ratings in judging.verdicts.items() if len(set(ratings)) > 1]
    return {
        "shares": {rating: percent(given[rating], given.total()) for rating in RATINGS},
        "num_ratings": given.total(),
        **({"rated_differently": named(several)} if several else {}),
        **told,
    }


BENCHMARK = Benchmark("owleval", read, read_predictions, mark, score)
