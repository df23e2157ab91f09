"""SEED-Bench, image questions only: single choice in nine dimensions. (Li et al., "SEED-Bench: Benchmarking Multimodal
LLMs with Generative Comprehension", CVPR 2024)

Official file: SEED-Bench.json, an object with `questions` (question_id, question, choice_a to choice_d, answer,
data_id, data_type, question_type_id) and `question_type`, dimension → id. Video questions, whose ids start with v, are
excluded. Predictions: the leaderboard's JSON lines, question_id and prediction.

One id occurs twice in published predictions; both rows count, and the scores report the duplicate id.
"""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.evaluation.files.json_files import image_root, question_images, read_object, starts_with_key
from model.evaluation.files.jsonl import Fields, check_fields, read_rows
from model.evaluation.interface import Answer, Benchmark, EvaluationError, Mark, Predictions, Question
from model.evaluation.scoring.common import accuracy, accuracy_by, check_unique, count_and_ids, split_scorable
from model.evaluation.scoring.match_option import match_option
from pipelines.images.references import ImageRoot
from pipelines.schema import LETTERS

CHOICES = ("choice_a", "choice_b", "choice_c", "choice_d")
OFFICIAL = r'"(questions|question_type)"'  # the first key of the official file
_VIDEO = "v"  # the prefix of the ids of video questions
_TEXT = (str, int, float)  # the types of a choice
_ROW: Fields = {"question_id": (int, str), "data_type": str, "question_type_id": int}
_IMAGE_ROW: Fields = {"question": str, "answer": str, "data_id": str, **dict.fromkeys(CHOICES, _TEXT)}
# The names of some dimensions differ between the file and the papers.
_ALSO_CALLED = {
    "instance_attribute": "instance_attributes",
    "instance_localization": "instance_location",
    "instances_counting": "instance_counting",
    "text_recognition": "text_understanding",
}


def read(path: Path, images: Path | None) -> list[Question]:
    """Reads the image questions; the ids are the question_id, with #2 appended to the second occurrence.

    images: the folder of the image files, named by data_id; None if only scores are needed. The names of the dimensions
    come from the file's question_type, because SEED-Bench's documents disagree on the numbers of instance attributes
    and instance location.
    """
    content = read_object(path, ("questions", "question_type"))
    rows, types = content["questions"], content["question_type"]
    if not isinstance(rows, list) or not isinstance(types, dict) or not all(type(n) is int for n in types.values()):
        raise EvaluationError(f"{path}: `questions` must be a list and `question_type` an object, dimension → id")
    dimensions = {number: dimension_key(name) for name, number in types.items()}
    root = image_root(images)
    times: Counter[str] = Counter()
    questions = []
    for number, row in enumerate(rows):
        where = f"{path}: questions[{number}]"
        if not isinstance(row, dict):
            raise EvaluationError(f"{where}: must be an object, not {type(row).__name__}")
        check_fields(where, row, _ROW)
        if row["data_type"] not in ("image", "video"):
            raise EvaluationError(f"{where}: field `data_type` must be image or video, found {row['data_type']!r}")
        if row["data_type"] == "image":
            questions.append(_question(where, row, dimensions, times, root))
    return check_unique(questions, path)


def dimension_key(name: str) -> str:
    """Returns a dimension's key in the scores, such as "spatial_relation" for "Spatial Relation"."""
    key = "_".join(re.findall(r"[a-z]+", name.lower()))
    return _ALSO_CALLED.get(key, key)


def _question(
    where: str, row: Mapping[str, Any], dimensions: Mapping[int, str], times: Counter[str], root: ImageRoot | None
) -> Question:
    """Builds a question. times: the number of previous occurrences of each id, which is updated."""
    check_fields(where, row, _IMAGE_ROW)
    truth, question = row["answer"].strip(), row["question"].strip()
    if truth not in tuple(LETTERS[: len(CHOICES)]):
        raise EvaluationError(f"{where}: field `answer` must be one of A, B, C, D, found {row['answer']!r}")
    if row["question_type_id"] not in dimensions:
        raise EvaluationError(f"{where}: question_type_id {row['question_type_id']} is not in `question_type`")
    if not question:
        raise EvaluationError(f"{where}: field `question` is empty")
    return Question(
        id=_numbered(str(row["question_id"]), times),
        fields={"question": question},
        truth=truth,
        options=tuple(str(row[choice]).strip() for choice in CHOICES),
        groups={"dimension": dimensions[row["question_type_id"]]},
        images=question_images(root, row["data_id"]),
    )


def _numbered(question_id: str, times: Counter[str]) -> str:
    """Returns the id, with #2 appended at its second occurrence, and counts the occurrence in `times`."""
    times[question_id] += 1
    return question_id if times[question_id] == 1 else f"{question_id}#{times[question_id]}"


def read_predictions(path: Path, truth: Path | None, questions: Path | None) -> Predictions:
    """Reads JSON lines with question_id and prediction.

    questions: SEED-Bench.json. truth: the same, or JSON lines with question_id and answer, which provide neither
    options nor dimensions. Exactly one of the two is required.
    """
    if (truth is None) == (questions is None):
        raise EvaluationError(
            f"{path}: SEED-Bench answers require either SEED-Bench.json (questions) or the correct answers (truth)"
        )
    source = questions or truth
    assert source is not None
    official = {q.id: q for q in (read(source, None) if starts_with_key(source, OFFICIAL) else _read_truth(source))}
    times: Counter[str] = Counter()
    answers: dict[str, Answer] = {}
    videos = 0
    for where, row in read_rows(path, {"question_id": (int, str), "prediction": str}):
        question_id = str(row["question_id"])
        if question_id.startswith(_VIDEO):
            videos += 1
            continue
        if question_id not in official:
            raise EvaluationError(f"{where}: question_id {question_id} is not in {source}: is it from another version?")
        first = answers.get(question_id)
        key = _numbered(question_id, times)
        if key not in official:  # the id has more answers than questions
            assert first is not None
            if first.text != row["prediction"]:
                raise EvaluationError(
                    f"{where}: question_id {question_id} is answered {row['prediction']!r} here, {first.text!r} earlier"
                )
            asked = official[question_id]
            official[key] = Question(key, asked.fields, asked.truth, asked.options, asked.groups)
        answers[key] = Answer(row["prediction"])
    if not answers:
        raise EvaluationError(f"{path}: answers no image questions")
    settings = {"left_out": {"video_questions": videos}} if videos else {}
    return Predictions(list(official.values()), answers, settings)


def _read_truth(path: Path) -> list[Question]:
    questions = []
    for where, row in read_rows(path, {"question_id": (int, str), "answer": str}):
        if row["answer"] not in tuple(LETTERS[: len(CHOICES)]):
            raise EvaluationError(f"{where}: field `answer` must be one of A, B, C, D, found {row['answer']!r}")
        if not str(row["question_id"]).startswith(_VIDEO):
            questions.append(Question(str(row["question_id"]), {}, row["answer"]))
    return check_unique(questions, path)


def mark(predictions: Predictions) -> dict[str, Mark]:
    """Marks each answer; `read` is an option's letter."""
    scored, _ = split_scorable(predictions)
    marks = {}
    for question, text in scored:
        letter = match_option(text, question.options or ("",) * len(CHOICES))  # without options, match only letters
        marks[question.id] = Mark(letter, float(letter == question.truth))
    return marks


def score(predictions: Predictions) -> dict[str, Any]:
    """Returns accuracies in percent over the image questions: overall and, if the questions have dimensions, by
    dimension. An answer that the rule matches to no option is wrong; such answers are counted and listed."""
    _, report = split_scorable(predictions)
    marks = mark(predictions)
    return {
        "accuracy": accuracy(list(marks.values()))["accuracy"],
        "dimensions": accuracy_by("dimension", predictions.questions, marks),
        **report,
        **predictions.settings.get("left_out", {}),
        "duplicate_ids": count_and_ids([question.id for question in predictions.questions if "#" in question.id]),
        "unmatched_answers": count_and_ids([key for key, mark in marks.items() if mark.read is None]),
        "version": "SEED-Bench 1, image questions",
        "parsing": "by rule: option letter or, if options are known, option text; an answer that matches none is wrong",
    }


BENCHMARK = Benchmark("seed_bench", read, read_predictions, mark, score)
