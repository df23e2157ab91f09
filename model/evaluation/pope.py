"""POPE: is a named object in the image? (Li et al., "Evaluating Object Hallucination in LVLMs", EMNLP 2023)

Official files: JSON lines `<images>_pope_<split>.json` with question_id, image, text, label. Official splits are
random, popular and adversarial; any other is scored on its own, outside the averages.
"""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model.evaluation.base import (
    YES_NO,
    Answer,
    Benchmark,
    EvaluationError,
    Mark,
    Predictions,
    Question,
    answered,
    named,
    percent,
    unique,
)
from model.evaluation.files import image_of, image_root
from model.evaluation.jsonl import read_rows
from pipelines.images import ImageRoot

OFFICIAL_SPLITS = ("random", "popular", "adversarial")
METRICS = ("accuracy", "precision", "recall", "f1", "yes_ratio")
_FILE = re.compile(r".+_pope_(?P<split>.+)\.json")
_NEGATIONS = {"No", "not", "no"}


def read(path: Path, images: Path | None) -> list[Question]:
    """The questions of one file, or of every `*_pope_*.json` of a directory; ids are `split/question_id`.

    images: the root of the image files; None where only scores are wanted.
    """
    files = sorted(path.glob("*_pope_*.json")) if path.is_dir() else [path]
    if not files:
        raise EvaluationError(f"{path}: has no file named like coco_pope_random.json")
    root = image_root(images)
    return unique([question for file in files for question in _read_split(file, root)], path)


def _read_split(file: Path, root: ImageRoot | None) -> list[Question]:
    match = _FILE.fullmatch(file.name)
    if match is None:
        raise EvaluationError(f"{file}: the name must tell the split, as in coco_pope_random.json")
    questions = []
    for where, row in read_rows(file, {"question_id": (int, str), "image": str, "text": str, "label": str}):
        if row["label"] not in ("yes", "no"):
            raise EvaluationError(f"{where}: label is {row['label']!r}, must be 'yes' or 'no'")
        questions.append(
            Question(
                id=f"{match['split']}/{row['question_id']}",
                fields={"question": row["text"].strip(), "image": row["image"]},
                truth=row["label"],
                groups={"split": match["split"]},
                images=image_of(root, row["image"]),
            )
        )
    return questions


def read_predictions(path: Path, truth: Path | None, questions: Path | None) -> Predictions:
    """LLaVA's layout: `path` has an answer a line (question_id, text); `questions`, LLaVA's question file, leads from
    question_id to category (the split); `truth` is the annotation folder. Within a category, the questions stand in
    the order of the truth rows."""
    if truth is None or questions is None:
        raise EvaluationError(
            f"{path}: POPE answers need the annotation folder (truth) and the question file (questions)"
        )
    by_split: dict[str, list[Question]] = {}
    for question in read(truth, None):
        by_split.setdefault(question.groups["split"], []).append(question)
    ids: dict[int | str, str] = {}
    place: Counter[str] = Counter()
    for where, row in read_rows(questions, {"question_id": (int, str), "image": str, "text": str, "category": str}):
        rows = by_split.get(row["category"], [])
        if place[row["category"]] >= len(rows):
            raise EvaluationError(f"{where}: {truth} has only {len(rows)} rows of category {row['category']!r}")
        match = rows[place[row["category"]]]
        place[row["category"]] += 1
        if not row["text"].startswith(match.fields["question"]) or row["image"] != match.fields["image"]:
            raise EvaluationError(
                f"{where}: asks {row['text']!r} of {row['image']}, where {truth} has {match.fields['question']!r} of "
                f"{match.fields['image']} ({match.id}): the two files are of different versions"
            )
        if row["question_id"] in ids:
            raise EvaluationError(f"{where}: question_id {row['question_id']} stands twice")
        ids[row["question_id"]] = match.id
    answers: dict[str, Answer] = {}
    for where, row in read_rows(path, {"question_id": (int, str), "text": str}):
        if row["question_id"] not in ids:
            raise EvaluationError(f"{where}: question_id {row['question_id']} is not in {questions}: of another split?")
        key = ids[row["question_id"]]
        if key in answers:
            raise EvaluationError(f"{where}: question_id {row['question_id']} is answered twice")
        answers[key] = Answer(row["text"])
    # The question file says what was asked: splits that it leaves out are no part of these predictions.
    asked = [question for split, rows in by_split.items() if place[split] for question in rows]
    return Predictions(asked, answers)


def parse(text: str) -> str:
    """An answer as "yes" or "no", by the official rule: "no" if the first sentence, without commas and split at
    blanks, holds the word No, no or not; else "yes"."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if _NEGATIONS.intersection(words) else "yes"


def is_clear(text: str) -> bool:
    """Whether a person would read the same in an answer as the official rule does. The rule takes all that it does
    not know ("", "NO", "no!", "a dog") for yes."""
    words = set(re.findall(r"[a-z]+", text.lower()))
    return ("yes" in words) != bool(words & {"no", "not"}) and (parse(text) == "yes") == ("yes" in words)


def mark(predictions: Predictions) -> dict[str, Mark]:
    """Read as yes or no."""
    scored, _ = answered(predictions)
    return {question.id: Mark(parse(text), float(parse(text) == question.truth)) for question, text in scored}


def score(predictions: Predictions) -> dict[str, Any]:
    """Accuracy, precision, recall, F1 and share of yes answers, in percent, per split; their means over the official
    splits are the benchmark's scores. Precision is None where nothing was answered yes, recall where no truth is yes.
    """
    scored, report = answered(predictions)
    by_split: dict[str, list[tuple[str, str]]] = {}
    for question, text in scored:
        assert question.truth is not None
        by_split.setdefault(question.groups["split"], []).append((parse(text), question.truth))
    splits = {split: _metrics(pairs) for split, pairs in by_split.items()}
    averaged = [split for split in OFFICIAL_SPLITS if split in splits]
    means = {metric: _mean([splits[split][metric] for split in averaged]) for metric in METRICS}
    unclear = [question.id for question, text in scored if not is_clear(text)]
    return {
        **means,
        "averaged_over": averaged,
        "splits": splits,
        **report,
        "unclear_answers": named(unclear),
        "parsing": "official: first sentence, the words No, no, not are no, all else is yes",
    }


def _metrics(pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """pairs: (answer, truth), each yes or no."""
    count = Counter(pairs)
    tp, fp = count["yes", "yes"], count["yes", "no"]
    fn, tn = count["no", "yes"], count["no", "no"]
    return {
        "accuracy": percent(tp + tn, len(pairs)),
        "precision": percent(tp, tp + fp),
        "recall": percent(tp, tp + fn),
        "f1": percent(2 * tp, 2 * tp + fp + fn),
        "yes_ratio": percent(tp + fp, len(pairs)),
        "num_scored": len(pairs),
        "confusion": {"tp": tp, "fp": fp, "fn": fn, "tn": tn},
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


BENCHMARK = Benchmark("pope", read, read_predictions, mark, score, choices=YES_NO, needs=("split",))
