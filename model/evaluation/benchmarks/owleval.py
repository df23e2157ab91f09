"""OwlEval: 82 open questions about 50 images, whose answers are rated by people. (Ye et al., "mPLUG-Owl", 2023)

Official files: `questions.jsonl` (image, question_id, question, …) next to the folder `cases` of images; answers as
JSON lines (question_id, answer, …). There is no automatic score. Ratings are JSON lines with question_id, rating from A
(best) to D and, if there are several raters, `rater`; a line may have both answer and rating. A verdict is a list of
ratings.
"""

import statistics
from collections import Counter
from pathlib import Path
from typing import Any

from model.evaluation.files.json_files import image_root, question_images
from model.evaluation.files.jsonl import read_rows
from model.evaluation.interface import Answer, Benchmark, EvaluationError, Judging, Mark, Predictions, Question
from model.evaluation.judging.verdicts import counts
from model.evaluation.scoring.common import check_unique, count_and_ids, percent

RATINGS = "ABCD"
_FILE = "questions.jsonl"
_ID = {"question_id": (int, str)}
_NOT_RATED = "none: answers to this benchmark are rated by people, and no ratings were given"


def read(path: Path, images: Path | None) -> list[Question]:
    """Reads the questions of `questions.jsonl` or of the folder that contains it; the ids are the question_id. images:
    the folder of the image files, None if only scores are needed."""
    file = path / _FILE if path.is_dir() else path
    root = image_root(images)
    questions = []
    for where, row in read_rows(file, {**_ID, "image": str, "question": str}):
        if not row["question"].strip():
            raise EvaluationError(f"{where}: field `question` is empty")
        fields = {"question": row["question"].strip(), "image": row["image"]}
        questions.append(Question(str(row["question_id"]), fields, None, images=question_images(root, row["image"])))
    return check_unique(questions, file)


def read_predictions(path: Path, truth: Path | None, questions: Path | None) -> Predictions:
    """Reads a file of answers, ratings or both. truth: the official questions; without it, the questions are those in
    the file. questions: for a file of only ratings, optionally the file of the answers that were rated."""
    answers: dict[str, Answer] = {}
    ratings: dict[str, list[str]] = {}
    raters: set[tuple[str, str]] = set()
    for where, row in read_rows(path, _ID):
        key, answer, rating = str(row["question_id"]), row.get("answer"), row.get("rating")
        if answer is None and rating is None:
            raise EvaluationError(f"{where}: has neither `answer` nor `rating`; it has {', '.join(row)}")
        if rating is not None:
            if rating not in tuple(RATINGS):
                raise EvaluationError(f"{where}: field `rating` must be A, B, C or D, found {rating!r}")
            rater = (key, str(row.get("rater", "")))
            if rater in raters:
                hint = "name the raters in the field `rater`"
                raise EvaluationError(f"{where}: question_id {key} is rated twice by one rater: {hint}")
            raters.add(rater)
            ratings.setdefault(key, []).append(rating)
        if answer is not None:
            if not isinstance(answer, str):
                raise EvaluationError(f"{where}: field `answer` must be a string, found {answer!r}")
            if key in answers and answers[key].text != answer:
                raise EvaluationError(f"{where}: question_id {key} is answered twice")
            if key in answers and rating is None:
                raise EvaluationError(f"{where}: duplicate question_id {key}")
            answers[key] = Answer(answer)
    if questions is not None and not answers:
        answers = dict(read_predictions(questions, None, None).answers)
    asked = [Question(key, {}, None) for key in {**answers, **ratings}] if truth is None else read(truth, None)
    known = {question.id for question in asked}
    if unknown := sorted({*answers, *ratings} - known):
        ids = ", ".join(unknown[:5])
        raise EvaluationError(f"{path}: question_id {ids} is not among the questions: is it from another version?")
    if not ratings:
        return Predictions(check_unique(asked, path), answers)
    unrated = {question.id: "no rating in the file" for question in asked if question.id not in ratings}
    return Predictions(check_unique(asked, path), answers, judging=Judging({"people": path.name}, ratings, unrated))


def mark(predictions: Predictions) -> dict[str, Mark]:
    """Returns no marks, because there are no correct answers and a rating is not a credit."""
    return {}


def score(predictions: Predictions) -> dict[str, Any]:
    """Returns the share of each rating in percent, if there are ratings, and in any case the number of answers, the
    number of empty answers and the length of the answers in words."""
    report = counts(predictions)
    judging = predictions.judging
    report["judge"] = _NOT_RATED if judging is None else "people"
    words = [len(answer.text.split()) for answer in predictions.answers.values() if answer.text is not None]
    if words:
        report["words"] = {"mean": statistics.fmean(words), "median": statistics.median(words), "most": max(words)}
    report["asked"] = "each question separately, including those of a conversation"
    if judging is None:
        return report
    given = Counter(rating for ratings in judging.verdicts.values() for rating in ratings)
    differing = [key for key, ratings in judging.verdicts.items() if len(set(ratings)) > 1]
    return {
        "shares": {rating: percent(given[rating], given.total()) for rating in RATINGS},
        "num_ratings": given.total(),
        **({"rated_differently": count_and_ids(differing)} if differing else {}),
        **report,
    }


BENCHMARK = Benchmark("owleval", read, read_predictions, mark, score)
