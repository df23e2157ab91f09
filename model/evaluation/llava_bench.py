"""LLaVA-Bench (in the wild): open questions whose answers a judge compares with GPT-4's. (Liu et al., "Visual
Instruction Tuning", NeurIPS 2023)

Official files, in one folder: `questions.jsonl` (question_id, image, text, category), `context.jsonl` (image, caption),
`answers_gpt4.jsonl` (question_id, text): the reference, which GPT-4 wrote from the caption. Official predictions: JSON
lines of answers (question_id, text), or of reviews (question_id, category, tuple: the numbers of the reference and of
the model). A verdict is such a pair, 1 to 10 each.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model.evaluation.base import (
    Answer,
    Benchmark,
    EvaluationError,
    Judge,
    Judging,
    Mark,
    Predictions,
    Question,
    answered,
    percent,
    unique,
)
from model.evaluation.files import image_of, image_root
from model.evaluation.jsonl import read_rows
from model.evaluation.judging import counts, judge_each

CATEGORIES = ("conv", "detail", "complex")
_ID = {"question_id": (int, str)}
_PREFIX = "llava_bench_"  # of the categories in reviews
_NUMBER = r"(\d+(?:\.\d+)?)(?:/10)?"
_PAIR = re.compile(rf"\W*{_NUMBER}\s*[\s,;/|]\s*{_NUMBER}\W*")


def read(path: Path, images: Path | None) -> list[Question]:
    """The questions of the folder; ids are the question_id. images: the folder of the image files, None where only
    scores are wanted."""
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
        questions.append(Question(key, fields, references[key], groups=groups, images=image_of(root, row["image"])))
    return unique(questions, file)


def _by_key(file: Path, key: str, value: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for where, row in read_rows(file, {key: (int, str), value: str}):
        if str(row[key]) in found:
            raise EvaluationError(f"{where}: {key} {row[key]} stands twice")
        found[str(row[key])] = row[value]
    return found


def read_predictions(path: Path, truth: Path | None, questions: Path | None) -> Predictions:
    """Official answers or reviews. `truth`: the official folder, which answers need; without it, the questions of
    reviews are those that they name. `questions`, for reviews: the answers that were reviewed, if they are wanted."""
    official = None if truth is None else read(truth, None)
    rows = list(read_rows(path, _ID))
    if rows and "tuple" in rows[0][1]:
        asked, judging = _reviews(path, rows, official)
        return Predictions(asked, {} if questions is None else _answers(questions, asked), judging=judging)
    if official is None:
        raise EvaluationError(f"{path}: LLaVA-Bench answers need the official folder (truth)")
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
        raise EvaluationError(f"{where}: question_id {key} is none of the questions: of another version?")
    if key in seen:
        raise EvaluationError(f"{where}: question_id {key} stands twice")


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
            raise EvaluationError(f"{where}: tuple is {pair!r}, must be two numbers")
        category = str(row.get("category", "")).removeprefix(_PREFIX)
        questions[key] = Question(key, {}, None, groups={"category": category} if category else {})
        if all(1 <= each <= 10 for each in pair):
            verdicts[key] = (float(pair[0]), float(pair[1]))
        else:  # -1 -1 stands for a review that could not be read
            unjudged[key] = f"its review gives {pair}, not two numbers from 1 to 10"
    asked = list(questions.values()) if official is None else official
    unjudged |= {question.id: "not in the file" for question in asked if question.id not in questions}
    return asked, Judging({"model": "as in the file", "from": path.name}, verdicts, unjudged)


def judge(predictions: Predictions, judge: Judge) -> Judging:
    """Both answers to one question at a time, the reference first, as officially."""
    scored, _ = answered(predictions)
    asked = {
        question.id: {
            "caption": question.fields["caption"],
            "question": question.fields["question"],
            "reference": (question.truth or "").strip(),
            "answer": text.strip(),
        }
        for question, text in scored
    }
    return judge_each(judge, "llava_bench", asked, lambda _, reply: parse(reply))


def parse(reply: str) -> tuple[float, float] | None:
    """The two numbers of a reply's first line, if there are two and both are from 1 to 10."""
    lines = reply.strip().splitlines()
    match = _PAIR.fullmatch(lines[0]) if lines else None
    if match is None:
        return None
    pair = float(match[1]), float(match[2])
    return pair if all(1 <= each <= 10 for each in pair) else None


def mark(predictions: Predictions) -> dict[str, Mark]:
    """Read as both numbers, the reference's first; the credit is a tenth of the model's. No mark without a verdict."""
    verdicts = {} if predictions.judging is None else predictions.judging.verdicts
    return {
        question.id: Mark(f"{verdicts[question.id][0]:g} {verdicts[question.id][1]:g}", verdicts[question.id][1] / 10)
        for question in predictions.questions
        if question.id in verdicts
    }


def score(predictions: Predictions) -> dict[str, Any]:
    """100 · (sum of the model's numbers) ÷ (sum of the reference's), over all and by category; the two means as well.
    `official` rounds to one decimal, as the official summary. Without judge there is nothing but counts."""
    judging = predictions.judging
    told = counts(predictions)
    if judging is None:
        return told
    pairs = [(question, judging.verdicts[question.id]) for question in predictions.questions
             if question.id in judging.verdicts]  # fmt: skip
    told["num_judged"] = len(pairs)
    if not pairs:
        return told
    by_category: dict[str, list[tuple[float, float]]] = {}
    for question, pair in pairs:
        if "category" in question.groups:
            by_category.setdefault(question.groups["category"], []).append(pair)
    order = [name for name in CATEGORIES if name in by_category] + sorted(set(by_category) - set(CATEGORIES))
    whole = _measures([pair for _, pair in pairs])
    categories = {name: _measures(by_category[name]) for name in order}
    rounded = {name: round(values["score"], 1) for name, values in categories.items()}
    return {**whole, "categories": categories, "official": {"all": round(whole["score"], 1), **rounded}, **told}


def _measures(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """pairs: (reference, model), from 1 to 10."""
    reference, model = (sum(values) for values in zip(*pairs, strict=True))
    return {
        "score": percent(model, reference),
        "reference_mean": 10 * reference / len(pairs),
        "model_mean": 10 * model / len(pairs),
    }


BENCHMARK = Benchmark("llava_bench", read, read_predictions, mark, score, judge)
