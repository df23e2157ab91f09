"""MMMU: college-level questions of 30 subjects, with one image or several. (Yue et al., "MMMU", CVPR 2024)

Official files for asking: the hub's folder of one folder per subject with `validation-*.parquet`: id, question, options
(a Python list as text), answer, question_type, image_1 … image_7. `<image 1>` in question or options names an image.
Official predictions: `total_val_output.json`, {id: answer}, or an output folder `<subject>/output.json`, lists with id,
question_type, answer, all_choices, index2ans, response; `answer_dict_val.json` is the truth of both.
"""

import ast
import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from model.evaluation.base import (
    LETTERS,
    Answer,
    Benchmark,
    EvaluationError,
    Mark,
    Predictions,
    Question,
    QuestionImage,
    accuracy,
    accuracy_by,
    answered,
    named,
    unique,
)
from model.evaluation.files import image_root, read_json, read_object
from model.evaluation.jsonl import check_fields
from model.evaluation.mmmu_parse import choose, matches

DISCIPLINES = {
    "Art and Design": "Art Art_Theory Design Music",
    "Business": "Accounting Economics Finance Manage Marketing",
    "Science": "Biology Chemistry Geography Math Physics",
    "Health and Medicine": (
        "Basic_Medical_Science Clinical_Medicine Diagnostics_and_Laboratory_Medicine Pharmacy Public_Health"
    ),
    "Humanities and Social Science": "History Literature Sociology Psychology",
    "Tech and Engineering": (
        "Agriculture Architecture_and_Engineering Computer_Science Electronics Energy_and_Power Materials "
        "Mechanical_Engineering"
    ),
}
CHOICE, OPEN = "multiple-choice", "open"
_DISCIPLINE_OF = {subject: name for name, subjects in DISCIPLINES.items() for subject in subjects.split()}
_MOST_IMAGES = 7
_COLUMNS = ("id", "question", "options", "answer", "question_type")


def read(path: Path, images: Path | None) -> list[Question]:
    """The validation questions of the hub's folder, or of one Parquet file; ids are the official ones.

    The images stand in the files, so `images` is not looked into; None where only scores are wanted.
    """
    files = sorted(path.glob("*/validation-*.parquet")) if path.is_dir() else [path]
    if not files:
        raise EvaluationError(f"{path}: has no file like Accounting/validation-00000-of-00001.parquet")
    root = path if path.is_dir() else path.parent
    shown = None if images is None else image_root(root)
    questions = []
    for file in files:
        for number, row in enumerate(_rows(file)):
            name = f"{file.relative_to(root).as_posix()}#image_{{}}:{number}"
            questions.append(_question(f"{file}: row {number}", row, () if shown is None else tuple(
                QuestionImage(name.format(place), partial(shown.read, name.format(place))) for place in _images(row)
            )))  # fmt: skip
    return unique(questions, path)


def _rows(file: Path) -> list[dict[str, Any]]:
    """The columns of text, and of each image_<n> whether there is one; its bytes stay where they are."""
    try:
        with pq.ParquetFile(file) as table:
            names = table.schema_arrow.names
            if missing := [name for name in _COLUMNS if name not in names]:
                raise EvaluationError(f"{file}: has no column {', '.join(missing)}; it has {', '.join(names)}")
            rows = table.read(columns=list(_COLUMNS)).to_pylist()
            for place in range(1, _MOST_IMAGES + 1):
                if (name := f"image_{place}") in names:
                    kind = table.schema_arrow.field(name).type
                    part = f"{name}.path" if pa.types.is_struct(kind) and kind.get_field_index("path") >= 0 else name
                    column = table.read(columns=[part])[name]
                    for row, given in zip(rows, column.is_valid().to_pylist(), strict=True):
                        row[name] = given
    except FileNotFoundError:
        raise EvaluationError(f"{file}: there is no such file") from None
    except (pa.ArrowException, OSError) as error:
        raise EvaluationError(f"{file}: not a whole Parquet file: {error}") from None
    return rows


def _images(row: Mapping[str, Any]) -> list[int]:
    """The numbers of the row's images: those that it holds, and those that its text names, there or not."""
    text = f"{row['question']} {row['options']}"
    return [n for n in range(1, _MOST_IMAGES + 1) if row.get(f"image_{n}") or f"<image {n}>" in text]


def _question(where: str, row: Mapping[str, Any], images: tuple[QuestionImage, ...]) -> Question:
    check_fields(where, row, {name: str for name in _COLUMNS})
    options = _listed(where, "options", row["options"])
    kind = CHOICE if row["question_type"] == CHOICE else OPEN
    if (kind == CHOICE) != bool(options) or len(options) > len(LETTERS):
        raise EvaluationError(f"{where}: question_type is {row['question_type']!r}, but options are {row['options']!r}")
    answer = row["answer"].strip()
    if kind == CHOICE and answer not in ("?", "") and answer not in LETTERS[: len(options)]:
        raise EvaluationError(f"{where}: answer is {answer!r}, must be one of {', '.join(LETTERS[: len(options)])}")
    right = _listed(where, "answer", answer) if kind == OPEN and answer.startswith("[") else [answer]
    if not row["question"].strip():
        raise EvaluationError(f"{where}: has no question")
    return Question(
        id=row["id"],
        fields={"question": row["question"].strip()},
        truth=None if answer in ("?", "") else _truth(right),
        options=tuple(options),
        groups=_groups(where, row["id"], kind),
        images=images,
    )


def _listed(where: str, name: str, text: str) -> list[str]:
    """A Python list of texts or numbers, written as text."""
    try:
        values = ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):  # TypeError: {[]}
        values = None
    if not isinstance(values, list) or not all(isinstance(value, str | int | float) for value in values):
        raise EvaluationError(f"{where}: {name} is {text[:100]!r}, must be a Python list of texts")
    if name == "answer" and not values:
        raise EvaluationError(f"{where}: answer is an empty list")
    return [str(value) for value in values]


def _truth(right: Sequence[str]) -> str:
    """One right answer as it is, several as a JSON list."""
    return right[0] if len(right) == 1 and not right[0].startswith('["') else json.dumps(right, ensure_ascii=False)


def _truths(question: Question) -> list[str]:
    assert question.truth is not None
    return json.loads(question.truth) if question.truth.startswith('["') else [question.truth]


def _groups(where: str, key: str, kind: str) -> dict[str, str]:
    """From an id like validation_Art_Theory_3."""
    subject = key.split("_")[1:-1]
    if not subject:
        raise EvaluationError(f"{where}: id is {key!r}, must be like validation_Accounting_1")
    name = "_".join(subject)
    discipline = {"discipline": _DISCIPLINE_OF[name]} if name in _DISCIPLINE_OF else {}
    return {"subject": name, **discipline, "question_type": kind}


def read_predictions(path: Path, truth: Path | None, questions: Path | None) -> Predictions:
    """`total_val_output.json`, which needs `truth`, or the output folder. `truth`: `answer_dict_val.json`, or the
    hub's folder; `questions` is not used."""
    official = None if truth is None else {question.id: question for question in _read_truth(truth)}
    answers: dict[str, Answer] = {}
    asked: list[Question] = []
    for where, key, text, question in _outputs(path):
        if key in answers:
            raise EvaluationError(f"{where}: {key} is answered twice")
        if official is not None and key not in official:
            raise EvaluationError(f"{where}: {key} is not in {truth}: of another split?")
        if question is not None:
            asked.append(question if official is None else _agreed(where, question, official[key]))
        answers[key] = Answer(text)
    if official is None:
        if not asked:
            raise EvaluationError(f"{path}: has answers only: give answer_dict_val.json (truth)")
        return Predictions(unique(asked, path), answers)
    with_options = {question.id: question for question in asked}
    return Predictions([with_options.get(key, question) for key, question in official.items()], answers)


def _read_truth(path: Path) -> list[Question]:
    if path.suffix != ".json":
        return read(path, None)
    found = []
    for key, row in read_object(path).items():
        where = f"{path}: {key}"
        if not isinstance(row, dict):
            raise EvaluationError(f"{where}: must be an object with question_type, ground_truth")
        check_fields(where, row, {"question_type": str, "ground_truth": (str, list)})
        right = row["ground_truth"] if isinstance(row["ground_truth"], list) else [row["ground_truth"]]
        if not right or not all(isinstance(each, str) for each in right):
            raise EvaluationError(f"{where}: ground_truth is {row['ground_truth']!r}, must be a text or texts")
        kind = CHOICE if row["question_type"] == CHOICE else OPEN
        found.append(Question(key, {}, _truth(right), groups=_groups(where, key, kind)))
    return found


def _outputs(path: Path) -> list[tuple[str, str, str, Question | None]]:
    """[(where, id, response, its question where the file holds it)]."""
    if not path.is_dir():
        rows = read_object(path)
        if bad := [key for key, text in rows.items() if not isinstance(text, str)]:
            raise EvaluationError(f"{path}: {bad[0]}: the answer is {rows[bad[0]]!r}, must be a text")
        return [(str(path), key, text, None) for key, text in rows.items()]
    files = sorted(path.glob("*/output.json"))
    if not files:
        raise EvaluationError(f"{path}: has no file like Accounting/output.json")
    found: list[tuple[str, str, str, Question | None]] = []
    for file in files:
        content = read_json(file)
        if not isinstance(content, list):
            raise EvaluationError(f"{file}: must hold a JSON list")
        for number, row in enumerate(content):
            where = f"{file}: row {number}"
            if not isinstance(row, dict):
                raise EvaluationError(f"{where}: must be an object")
            check_fields(where, row, {"id": str, "question_type": str, "answer": (str, list), "response": str})
            right = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
            if not right or not all(isinstance(each, str) for each in right):
                raise EvaluationError(f"{where}: answer is {row['answer']!r}, must be a text or texts")
            choices = row.get("index2ans") or {}
            options: tuple[str, ...] = ()
            kind = CHOICE if row["question_type"] == CHOICE else OPEN
            if kind == CHOICE:
                if not isinstance(choices, dict) or list(choices) != list(LETTERS[: len(choices)]) or not choices:
                    raise EvaluationError(f"{where}: index2ans is {choices!r}, must give letters from A on their texts")
                options = tuple(str(text) for text in choices.values())
                if not set(right) <= set(choices):
                    raise EvaluationError(f"{where}: answer is {row['answer']!r}, must be one of {', '.join(choices)}")
            question = Question(row["id"], {}, _truth(right), options, _groups(where, row["id"], kind))
            found.append((where, row["id"], row["response"], question))
    return found


def _agreed(where: str, ours: Question, official: Question) -> Question:
    """The question with its options; its answer must be the official one."""
    if ours.truth != official.truth:
        raise EvaluationError(f"{where}: answer is {ours.truth!r}, the truth has {official.truth!r} for {ours.id}: "
                              "of another version?")  # fmt: skip
    return ours


def mark(predictions: Predictions) -> dict[str, Mark]:
    """Choices read as a letter, open answers as they are."""
    scored, _ = answered(predictions)
    return {question.id: _mark(question, text) for question, text in scored}


def _mark(question: Question, text: str) -> Mark:
    if question.groups.get("question_type") != CHOICE:
        return Mark(text.strip() or None, float(matches(text, _truths(question))))
    if question.options:
        letter = choose(text, dict(zip(LETTERS, question.options, strict=False)))
    else:  # the predictions were parsed already: letters only
        letter = text.strip() if re.fullmatch("[A-Z]", text.strip()) else None
    return Mark(letter, float(letter is not None and letter in _truths(question)))


def score(predictions: Predictions) -> dict[str, Any]:
    """Accuracy in percent: over all questions, by discipline, subject and type of question. A response in which no
    letter can be read is wrong, counted and named."""
    _, report = answered(predictions)
    marks = mark(predictions)
    result: dict[str, Any] = {"accuracy": accuracy(list(marks.values()))["accuracy"]}
    for kind, plural in (("discipline", "disciplines"), ("subject", "subjects"), ("question_type", "question_types")):
        result[plural] = accuracy_by(kind, predictions.questions, marks)
    unmatched = [key for key, mark in marks.items() if mark.read is None]
    return {
        **result,
        **report,
        "unmatched_answers": named(unmatched),
        "parsing": "official rules, but what matches no option is wrong, where the official code draws a random letter",
    }


BENCHMARK = Benchmark("mmmu", read, read_predictions, mark, score)
