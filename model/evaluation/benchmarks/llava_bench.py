"""LLaVA-Bench (in the wild): open questions whose answers a judge compares with GPT-4's. (Liu et al., "Visual
Instruction Tuning", NeurIPS 2023)

Official files, in one folder: `questions.jsonl` (question_id, image, text, category), `context.jsonl` (image, caption),
`answers_gpt4.jsonl` (question_id, text), the reference answers, which GPT-4 wrote from the captions. Official
predictions: JSON lines of answers (question_id, text) or of reviews (question_id, category, tuple: the ratings of the
reference and of the model). A verdict is such a pair of ratings, each from 1 to 10.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model.evaluation.files.json_files import image_root, question_images
from model.evaluation.files.jsonl import read_rows
from model.evaluation.interface import Answer, Benchmark, EvaluationError, Judge, Judging, Mark, Predictions, Question
from model.evaluation.judging.verdicts import ask_verdicts, counts
from model.evaluation.scoring.common import check_unique, percent, split_scorable

CATEGORIES = ("conv", "detail", "complex")
_ID = {"question_id": (int, str)}
_PREFIX = "llava_bench_"  # precedes the category names in reviews
_NUMBER = r"(\d+(?:\.\d+)?)(?:/10)?"
_PAIR = re.compile(rf"\W*{_NUMBER}\s*[\s,;/|]\s*{_NUMBER}\W*")


def read(path: Path, images: Path | None) -> list[Question]:
    """Reads the questions of the official folder; the ids are the question_id. images: the folder of the image files,
    None if only scores are needed."""
    if not path.is_dir():
        raise EvaluationError(f"{path}: must be the folder of questions.jsonl, context.jsonl and answers_gpt4.jsonl")
    captions = _by_key(path / "context.jsonl", "image", "caption")
    references = _by_key(path / "answers_gpt4.jsonl", "question_id", "text")
    root = image_root(images)
    questions = []
    file = path / "questions.jsonl"
    for where, row in read_rows(file, {**_ID, "image": str, "text": str, "category": str}):
        key = str(row["question_id"])
        if row["image"] not in captions:
            raise EvaluationError(f"{where}: image {row['image']} has no caption in {path / 'context.jsonl'}")
        if key not in references:
            raise EvaluationError(f"{where}: question_id {key} has no answer in {path / 'answers_gpt4.jsonl'}")
        if not row["text"].strip():
            raise EvaluationError(f"{where}: text is empty")
        fields = {"question": row["text"].strip(), "caption": captions[row["image"]], "image": row["image"]}
        groups = {"category": row["category"]}
        questions.append(
            Question(key, fields, references[key], groups=groups, images=question_images(root, row["image"]))
        )
    return check_unique(questions, file)


def _by_key(file: Path, key: str, value: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for where, row in read_rows(file, {key: (int, str), value: str}):
        if str(row[key]) in found:
            raise EvaluationError(f"{where}: duplicate {key} {row[key]}")
        found[str(row[key])] = row[value]
    return found


def read_predictions(path: Path, truth: Path | None, questions: Path | None) -> Predictions:
    """Reads official answers or reviews. truth: the official folder; answers require it, reviews without it cover only
    the questions that they contain. questions: for reviews, optionally the file of the answers that were reviewed."""
    official = None if truth is None else read(truth, None)
    rows = list(read_rows(path, _ID))
    if rows and "tuple" in rows[0][1]:
        asked, judging = _reviews(path, rows, official)
        return Predictions(asked, {} if questions is None else _answers(questions, asked), judging=judging)
    if official is None:
        raise EvaluationError(f"{path}: LLaVA-Bench answers require the official folder (truth)")
    return Predictions(official, _answers(path, official))


def _answers(path: Path, asked: Sequence[Question]) -> dict[str, Answer]:
    known = {question.id for question in asked}
    answers: dict[str, Answer] = {}
    for where, row in read_rows(path, {**_ID, "text": str}):
        _check_id(where, row, known, answers)
        answers[str(row["question_id"])] = Answer(row["text"])
    return answers


def _check_id(where: str, row: dict[str, Any], known: set[str] | None, seen: Any) -> None:
    key = str(row["question_id"])
    if known is not None and key not in known:
        raise EvaluationError(f"{where}: question_id {key} is not among the questions: is it from another version?")
    if key in seen:
        raise EvaluationError(f"{where}: duplicate question_id {key}")


def _reviews(
    path: Path, rows: Sequence[tuple[str, dict[str, Any]]], official: list[Question] | None
) -> tuple[list[Question], Judging]:
    known = None if official is None else {question.id for question in official}
    questions: dict[str, Question] = {}
    verdicts: dict[str, tuple[float, float]] = {}
    unjudged: dict[str, str] = {}
    for where, row in rows:
        _check_id(where, row, known, questions)
        key, pair = str(row["question_id"]), row.get("tuple")
        if not isinstance(pair, list) or len(pair) != 2 or not all(type(each) in (int, float) for each in pair):
            raise EvaluationError(f"{where}: field `tuple` must be a list of two numbers, found {pair!r}")
        category = str(row.get("category", "")).removeprefix(_PREFIX)
        questions[key] = Question(key, {}, None, groups={"category": category} if category else {})
        if all(1 <= each <= 10 for each in pair):
            verdicts[key] = (float(pair[0]), float(pair[1]))
        else:  # [-1, -1] marks a review that the official script could not parse
            unjudged[key] = f"its review gives {pair}, not two numbers from 1 to 10"
    asked = list(questions.values()) if official is None else official
    unjudged |= {question.id: "not in the file" for question in asked if question.id not in questions}
    return asked, Judging({"model": "as in the file", "from": path.name}, verdicts, unjudged)


def judge(predictions: Predictions, judge: Judge) -> Judging:
    """Asks for ratings of the reference and the model's answer together, in that order, as in the official script."""
    scored, _ = split_scorable(predictions)
    asked = {
        question.id: {
            "caption": question.fields["caption"],
            "question": question.fields["question"],
            "reference": (question.truth or "").strip(),
            "answer": text.strip(),
        }
        for question, text in scored
    }
    return ask_verdicts(judge, "llava_bench", asked, lambda _, reply: parse(reply))


def parse(reply: str) -> tuple[float, float] | None:
    """Returns the two ratings in a reply's first line, or None unless there are exactly two, both from 1 to 10."""
    lines = reply.strip().splitlines()
    match = _PAIR.fullmatch(lines[0]) if lines else None
    if match is None:
        return None
    pair = float(match[1]), float(match[2])
    return pair if all(1 <= each <= 10 for each in pair) else None


def mark(predictions: Predictions) -> dict[str, Mark]:
    """Marks each judged answer: `read` is both ratings, the reference's first; `credit` is a tenth of the model's."""
    verdicts = {} if predictions.judging is None else predictions.judging.verdicts
    return {
        question.id: Mark(f"{verdicts[question.id][0]:g} {verdicts[question.id][1]:g}", verdicts[question.id][1] / 10)
        for question in predictions.questions
        if question.id in verdicts
    }


def score(predictions: Predictions) -> dict[str, Any]:
    """Returns 100 · (sum of the model's ratings) ÷ (sum of the reference's) and both mean ratings, overall and by
    category. `official` is rounded to one decimal, like the official summary. Without verdicts, returns only counts."""
    judging = predictions.judging
    report = counts(predictions)
    if judging is None:
        return report
    pairs = [(question, judging.verdicts[question.id]) for question in predictions.questions
             if question.id in judging.verdicts]  # fmt: skip
    report["num_judged"] = len(pairs)
    if not pairs:
        return report
    by_category: dict[str, list[tuple[float, float]]] = {}
    for question, pair in pairs:
        if "category" in question.groups:
            by_category.setdefault(question.groups["category"], []).append(pair)
    order = [name for name in CATEGORIES if name in by_category] + sorted(set(by_category) - set(CATEGORIES))
    overall = _measures([pair for _, pair in pairs])
    categories = {name: _measures(by_category[name]) for name in order}
    rounded = {name: round(values["score"], 1) for name, values in categories.items()}
    return {**overall, "categories": categories, "official": {"all": round(overall["score"], 1), **rounded}, **report}


def _measures(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Returns the score and both means of pairs of ratings (reference, model), from 1 to 10."""
    reference, model = (sum(values) for values in zip(*pairs, strict=True))
    return {
        "score": percent(model, reference),
        "reference_mean": 10 * reference / len(pairs),
        "model_mean": 10 * model / len(pairs),
    }


BENCHMARK = Benchmark("llava_bench", read, read_predictions, mark, score, judge)
