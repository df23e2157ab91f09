"""POPE: is a given object in the image? (Li et al., "Evaluating Object Hallucination in LVLMs", EMNLP 2023)

Official files: JSON lines `<images>_pope_<split>.json` with question_id, image, text, label. The official splits are
random, popular and adversarial; any other split is scored separately and excluded from the averages.
"""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model.evaluation.files.json_files import image_root, question_images
from model.evaluation.files.jsonl import read_rows
from model.evaluation.files.listing import files_like
from model.evaluation.interface import YES_NO, Answer, Benchmark, EvaluationError, Mark, Predictions, Question
from model.evaluation.scoring.common import check_unique, count_and_ids, percent, split_scorable
from pipelines.images.references import ImageRoot

OFFICIAL_SPLITS = ("random", "popular", "adversarial")
METRICS = ("accuracy", "precision", "recall", "f1", "yes_ratio")
_FILE = re.compile(r".+_pope_(?P<split>.+)\.json")
_NEGATIONS = {"No", "not", "no"}


def read(path: Path, images: Path | None) -> list[Question]:
    """Reads the questions of one file or of every `*_pope_*.json` in a directory; the ids are `split/question_id`.

    images: the root of the image files; None if only scores are needed.
    """
    files = files_like(path, "*_pope_*.json") if path.is_dir() else [path]
    if not files:
        raise EvaluationError(f"{path}: contains no file named like coco_pope_random.json")
    root = image_root(images)
    return check_unique([question for file in files for question in _read_split(file, root)], path)


def _read_split(file: Path, root: ImageRoot | None) -> list[Question]:
    match = _FILE.fullmatch(file.name)
    if match is None:
        raise EvaluationError(f"{file}: the file name must contain the split, as in coco_pope_random.json")
    questions = []
    for where, row in read_rows(file, {"question_id": (int, str), "image": str, "text": str, "label": str}):
        if row["label"] not in ("yes", "no"):
            raise EvaluationError(f"{where}: field `label` must be 'yes' or 'no', found {row['label']!r}")
        questions.append(
            Question(
                id=f"{match['split']}/{row['question_id']}",
                fields={"question": row["text"].strip(), "image": row["image"]},
                truth=row["label"],
                groups={"split": match["split"]},
                images=question_images(root, row["image"]),
            )
        )
    return questions


def read_predictions(path: Path, truth: Path | None, questions: Path | None) -> Predictions:
    """Reads answers in LLaVA's layout: JSON lines with question_id and text. questions: LLaVA's question file, which
    maps question_id to category (the split). truth: the annotation folder. Within a category, the questions have the
    same order as the rows of the annotation file."""
    if truth is None or questions is None:
        raise EvaluationError(
            f"{path}: POPE answers require the annotation folder (truth) and the question file (questions)"
        )
    by_split: dict[str, list[Question]] = {}
    for question in read(truth, None):
        by_split.setdefault(question.groups["split"], []).append(question)
    ids: dict[int | str, str] = {}
    position: Counter[str] = Counter()
    for where, row in read_rows(questions, {"question_id": (int, str), "image": str, "text": str, "category": str}):
        rows = by_split.get(row["category"], [])
        if position[row["category"]] >= len(rows):
            raise EvaluationError(f"{where}: {truth} has only {len(rows)} rows of category {row['category']!r}")
        match = rows[position[row["category"]]]
        position[row["category"]] += 1
        if not row["text"].startswith(match.fields["question"]) or row["image"] != match.fields["image"]:
            raise EvaluationError(
                f"{where}: asks {row['text']!r} about {row['image']}, but {truth} asks {match.fields['question']!r} "
                f"about {match.fields['image']} ({match.id}): the two files are different versions"
            )
        if row["question_id"] in ids:
            raise EvaluationError(f"{where}: duplicate question_id {row['question_id']}")
        ids[row["question_id"]] = match.id
    answers: dict[str, Answer] = {}
    for where, row in read_rows(path, {"question_id": (int, str), "text": str}):
        if row["question_id"] not in ids:
            hint = "is it from another split?"
            raise EvaluationError(f"{where}: question_id {row['question_id']} is not in {questions}: {hint}")
        key = ids[row["question_id"]]
        if key in answers:
            raise EvaluationError(f"{where}: question_id {row['question_id']} is answered twice")
        answers[key] = Answer(row["text"])
    # Only the splits in the question file were asked.
    asked = [question for split, rows in by_split.items() if position[split] for question in rows]
    return Predictions(asked, answers)


def parse(text: str) -> str:
    """Parses an answer as "yes" or "no" by the official rule: "no" if the first sentence, without commas and split at
    spaces, contains the word No, no or not; else "yes"."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if _NEGATIONS.intersection(words) else "yes"


def is_clear(text: str) -> bool:
    """Returns whether a person would agree with the official rule, which parses everything that it does not recognise
    ("", "NO", "no!", "a dog") as yes."""
    words = set(re.findall(r"[a-z]+", text.lower()))
    return ("yes" in words) != bool(words & {"no", "not"}) and (parse(text) == "yes") == ("yes" in words)


def mark(predictions: Predictions) -> dict[str, Mark]:
    """Marks each answer; `read` is yes or no."""
    scored, _ = split_scorable(predictions)
    return {question.id: Mark(parse(text), float(parse(text) == question.truth)) for question, text in scored}


def score(predictions: Predictions) -> dict[str, Any]:
    """Returns accuracy, precision, recall, F1 and the share of yes answers, in percent, per split; their means over the
    official splits are the benchmark's scores. Precision is None if no answer is yes, recall if no truth is yes."""
    scored, report = split_scorable(predictions)
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
        "unclear_answers": count_and_ids(unclear),
        "parsing": "official: No, no or not in the first sentence is no; everything else is yes",
    }


def _metrics(pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Returns the metrics of pairs (answer, truth), each yes or no."""
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
