"""MM-Vet: open questions that combine several capabilities, graded by a judge. (Yu et al., "MM-Vet", ICML 2024)

Official files: `mm-vet.json`, {id: {imagename, question, answer, capability: […]}}, next to the folder `images`. In
the field `answer`, <AND> joins parts that are all required and <OR> joins alternatives. Official predictions: a JSON
file of answers {id: text} or of grades {id: {model: […], content: […], score: […]}} with one score from 0 to 1 per run
of the judge. A verdict is the list of an answer's scores.
"""

import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from model.evaluation.files.json_files import image_root, question_images, read_object
from model.evaluation.files.jsonl import check_fields
from model.evaluation.interface import Answer, Benchmark, EvaluationError, Judge, Judging, Mark, Predictions, Question
from model.evaluation.judging.verdicts import ask_verdicts, counts
from model.evaluation.scoring.common import check_unique, split_scorable

_FILE = "mm-vet.json"
# Possessive quantifiers: backtracking would read "0.5/1" as 0.
_GRADE = re.compile(r"(?:grade|score|correctness)?\W*?([-+]?(?:\d++\.?+\d*+|\.\d++))(?![\w%/])", re.IGNORECASE)


def read(path: Path, images: Path | None) -> list[Question]:
    """Reads the questions of `mm-vet.json` or of the folder that contains it; the ids are the official ones.

    images: the folder of the image files; None if only scores are needed.
    """
    file = path / _FILE if path.is_dir() else path
    root = image_root(images)
    questions = []
    for key, row in read_object(file).items():
        where = f"{file}: {key}"
        if not isinstance(row, dict):
            raise EvaluationError(f"{where}: must be an object with imagename, question, answer, capability")
        check_fields(where, row, {"imagename": str, "question": str, "answer": str, "capability": list})
        needed = row["capability"]
        if not needed or not all(isinstance(each, str) and each for each in needed):
            raise EvaluationError(f"{where}: field `capability` must be a non-empty list of names, found {needed!r}")
        if not row["question"].strip() or not row["answer"].strip():
            raise EvaluationError(f"{where}: field `question` or `answer` is empty")
        questions.append(
            Question(
                id=key,
                fields={"question": row["question"].strip(), "image": row["imagename"]},
                truth=row["answer"],
                groups={"capabilities": "+".join(sorted(set(needed)))},
                images=question_images(root, row["imagename"]),
            )
        )
    return check_unique(questions, file)


def read_predictions(path: Path, truth: Path | None, questions: Path | None) -> Predictions:
    """Reads official answers or grades. truth: `mm-vet.json`; answers require it, grades without it give a total but no
    capabilities. questions: for grades, optionally the official file of the answers that were graded."""
    rows = read_object(path)
    official = None if truth is None else read(truth, None)
    if any(isinstance(row, dict) for row in rows.values()):
        asked = official or [Question(key, {}, None) for key in rows]
        answers = {} if questions is None else _answers(questions, read_object(questions), asked)
        return Predictions(asked, answers, judging=_grades(path, rows, asked))
    if official is None:
        raise EvaluationError(f"{path}: MM-Vet answers require mm-vet.json (truth)")
    return Predictions(official, _answers(path, rows, official))


def _answers(path: Path, rows: Mapping[str, Any], asked: Sequence[Question]) -> dict[str, Answer]:
    known = {question.id for question in asked}
    for key, text in rows.items():
        if key not in known:
            raise EvaluationError(f"{path}: {key} is not among the questions: is it from another version?")
        if not isinstance(text, str):
            raise EvaluationError(f"{path}: {key}: the answer must be a string, found {text!r}")
    return {key: Answer(text) for key, text in rows.items()}


def _grades(path: Path, rows: Mapping[str, Any], asked: Sequence[Question]) -> Judging:
    known = {question.id for question in asked}
    verdicts: dict[str, list[float]] = {}
    models: set[str] = set()
    for key, row in rows.items():
        where = f"{path}: {key}"
        if key not in known:
            raise EvaluationError(f"{where} is not among the questions: is it from another version?")
        scores = row.get("score") if isinstance(row, dict) else None
        if not isinstance(scores, list) or not scores or not all(_is_grade(score) for score in scores):
            raise EvaluationError(
                f"{where}: field `score` must be a list of numbers from 0 to 1, one per run, found {scores!r}"
            )
        verdicts[key] = [float(score) for score in scores]
        models |= {each for each in _list(row.get("model")) if isinstance(each, str)}
    runs = max(map(len, verdicts.values()))
    if short := [key for key, scores in verdicts.items() if len(scores) < runs]:
        raise EvaluationError(f"{path}: {len(short)} answers have fewer than {runs} grades ({', '.join(short[:5])}): "
                              "the grading is incomplete")  # fmt: skip
    by = {"model": ", ".join(sorted(models)) or "unknown", "from": path.name}
    return Judging(by, verdicts, {key: "not graded in the file" for key in known - set(verdicts)})


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _is_grade(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def judge(predictions: Predictions, judge: Judge) -> Judging:
    """One run of the judge over all answers; an empty answer too is for it to grade."""
    scored, _ = split_scorable(predictions)
    asked = {
        question.id: {
            "question": question.fields["question"],
            "truth": re.sub(r"\s*<(AND|OR)>\s*", r" <\1> ", question.truth or ""),
            "answer": text.strip(),
        }
        for question, text in scored
    }
    return ask_verdicts(judge, "mm_vet", asked, lambda _, reply: parse(reply))


def parse(reply: str) -> list[float] | None:
    """Returns [grade] for the grade at the start of a reply ("0.5", "Grade: 1.0"), or None without one from 0 to 1."""
    match = _GRADE.match(reply.strip())
    return [float(match[1])] if match is not None and 0 <= float(match[1]) <= 1 else None


def mark(predictions: Predictions) -> dict[str, Mark]:
    """Marks each graded answer with the mean of its grades."""
    verdicts = {} if predictions.judging is None else predictions.judging.verdicts
    found = {}
    for question in predictions.questions:
        if question.id in verdicts:
            mean = statistics.fmean(verdicts[question.id])
            found[question.id] = Mark(f"{mean:.2f}".rstrip("0").rstrip("."), mean)
    return found


def score(predictions: Predictions) -> dict[str, Any]:
    """Returns the scores of the graded answers from 0 to 100: overall, per capability, per combination of capabilities.

    With several runs, `runs` has their totals, `std` the population standard deviation of these, and all other scores
    are means. `official` is rounded to one decimal, like the official table. Without verdicts, returns only counts.
    """
    judging = predictions.judging
    report = counts(predictions)
    if judging is None:
        return report
    graded = [question for question in predictions.questions if question.id in judging.verdicts]
    report["num_graded"] = len(graded)
    if not graded:
        return report
    runs = list(zip(*(judging.verdicts[question.id] for question in graded), strict=True))
    totals = [100 * statistics.fmean(run) for run in runs]
    means = {key: 100 * mark.credit for key, mark in mark(predictions).items()}
    combinations: dict[str, list[float]] = {}
    capabilities: dict[str, list[float]] = {}
    for question in graded:
        if (combination := question.groups.get("capabilities")) is not None:
            combinations.setdefault(combination, []).append(means[question.id])
            for capability in combination.split("+"):
                capabilities.setdefault(capability, []).append(means[question.id])
    return {
        "score": statistics.fmean(totals),
        "runs": totals,
        "std": statistics.pstdev(totals),
        "capabilities": {name: statistics.fmean(values) for name, values in sorted(capabilities.items())},
        "combinations": {name: statistics.fmean(values) for name, values in sorted(combinations.items())},
        "official": {"total": round(statistics.fmean(totals), 1), "runs": [round(total, 1) for total in totals]},
        **report,
    }


BENCHMARK = Benchmark("mm_vet", read, read_predictions, mark, score, judge)
