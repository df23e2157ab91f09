"""What the scorers of several benchmarks share: accuracies, percentages, groups, and answers without a question."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from model.evaluation.interface import EvaluationError, Mark, Predictions, Question

MAX_LISTED_IDS = 20  # the most ids that are listed next to a count of problems


def count_and_ids(ids: Sequence[str]) -> dict[str, Any]:
    """Returns the number of ids and the first few of them, to report next to a score."""
    return {"count": len(ids), "ids": list(ids[:MAX_LISTED_IDS])}


def check_unique(questions: Sequence[Question], where: Path) -> list[Question]:
    """Returns the questions. Raises EvaluationError if there are none or if an id occurs more than once."""
    seen: set[str] = set()
    repeated = [q.id for q in questions if q.id in seen or seen.add(q.id)]  # type: ignore[func-returns-value]
    if repeated:
        raise EvaluationError(
            f"{where}: {len(repeated)} duplicate question ids: {', '.join(repeated[:MAX_LISTED_IDS])}"
        )
    if not questions:
        raise EvaluationError(f"{where}: contains no questions")
    return list(questions)


def percent(part: float, whole: float) -> float | None:
    """Returns `part` as a percentage of `whole`, or None if `whole` is 0."""
    return 100 * part / whole if whole else None


def accuracy(marks: Sequence[Mark]) -> dict[str, Any]:
    """Returns {"accuracy": in percent, "num_scored": number of marks}."""
    return {"accuracy": percent(sum(mark.credit for mark in marks), len(marks)), "num_scored": len(marks)}


def accuracy_by(group: str, questions: Sequence[Question], marks: Mapping[str, Mark]) -> dict[str, dict[str, Any]]:
    """Returns `accuracy` for each value of a group, over the marked questions that have that group."""
    members: dict[str, list[Mark]] = {}
    for question in questions:
        if question.id in marks and group in question.groups:
            members.setdefault(question.groups[group], []).append(marks[question.id])
    return {value: accuracy(own) for value, own in sorted(members.items())}


def split_scorable(
    predictions: Predictions, needs_truth: bool = True
) -> tuple[list[tuple[Question, str]], dict[str, Any]]:
    """Returns (the questions that can be scored, with their answers; the part of the scores that reports the others).

    A question without an answer counts as neither correct nor wrong: it is excluded from the scores and reported in
    them. The same holds for a question without truth if the score `needs_truth`.
    Raises EvaluationError if an answer belongs to no question or if no question can be scored.
    """
    questions, answers = predictions.questions, predictions.answers
    known = {question.id for question in questions}
    foreign = [key for key in answers if key not in known]
    if foreign:
        raise EvaluationError(
            f"{len(foreign)} answers belong to no question ({', '.join(foreign[:5])}): "
            "the predictions are for a different split or version of the benchmark"
        )
    scored: list[tuple[Question, str]] = []
    missing: list[str] = []
    without_truth: list[str] = []
    errors: dict[str, str] = {}
    for question in questions:
        answer = answers.get(question.id)
        if answer is None:
            missing.append(question.id)
        elif answer.text is None:
            errors[question.id] = answer.error or "no answer"
        elif question.truth is None and needs_truth:
            without_truth.append(question.id)
        else:
            scored.append((question, answer.text))
    report: dict[str, Any] = {"num_questions": len(questions), "num_scored": len(scored)}
    if missing:
        report["without_answer"] = count_and_ids(missing)
    if without_truth:
        report["without_truth"] = count_and_ids(without_truth)
    if errors:
        report["not_asked"] = {"count": len(errors), "errors": dict(list(errors.items())[:MAX_LISTED_IDS])}
    if not scored:
        raise EvaluationError(f"none of {len(questions)} questions can be scored: {report}")
    return scored, report
