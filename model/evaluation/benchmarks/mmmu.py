"""MMMU: college-level questions in 30 subjects, with one or more images. (Yue et al., "MMMU", CVPR 2024)

Official questions: the hub's folder with one folder per subject that has `validation-*.parquet`: id, question, options
(a Python list as text), answer, question_type, image_1 … image_7. `<image 1>` in question or options refers to image_1.
Official predictions: `total_val_output.json`, {id: answer}, or an output folder of `<subject>/output.json`, lists with
id, question_type, answer, all_choices, index2ans, response; `answer_dict_val.json` is the ground truth for both.
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

from model.evaluation.benchmarks.mmmu_parse import choose, matches
from model.evaluation.files.json_files import image_root, read_json, read_object
from model.evaluation.files.jsonl import check_fields
from model.evaluation.files.listing import files_like
from model.evaluation.interface import (
    Answer,
    Benchmark,
    EvaluationError,
    Mark,
    Predictions,
    Question,
    QuestionImage,
)
from model.evaluation.scoring.common import accuracy, accuracy_by, check_unique, count_and_ids, split_scorable
from pipelines.schema import LETTERS

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
    """Reads the validation questions of the hub's folder or of one Parquet file; the ids are the official ones.

    images: None if only scores are needed; any other value is ignored, because the Parquet files contain the images.
    """
    files = files_like(path, "*/validation-*.parquet") if path.is_dir() else [path]
    if not files:
        raise EvaluationError(f"{path}: has no file like Accounting/validation-00000-of-00001.parquet")
    root = path if path.is_dir() else path.parent
    opened = None if images is None else image_root(root)
    questions = []
    for file in files:
        for index, row in enumerate(_rows(file)):
            name = f"{file.relative_to(root).as_posix()}#image_{{}}:{index}"
            questions.append(_question(f"{file}: row {index}", row, () if opened is None else tuple(
                QuestionImage(name.format(n), partial(opened.read, name.format(n))) for n in _images(row)
            )))  # fmt: skip
    return check_unique(questions, path)


def _rows(file: Path) -> list[dict[str, Any]]:
    """Returns the text columns of each row and, without reading image bytes, whether each image_<n> is present."""
    try:
        with pq.ParquetFile(file) as table:
            names = table.schema_arrow.names
            if missing := [name for name in _COLUMNS if name not in names]:
                raise EvaluationError(f"{file}: has no column {', '.join(missing)}; it has {', '.join(names)}")
            rows = table.read(columns=list(_COLUMNS)).to_pylist()
            for n in range(1, _MOST_IMAGES + 1):
                if (name := f"image_{n}") in names:
                    kind = table.schema_arrow.field(name).type
                    leaf = f"{name}.path" if pa.types.is_struct(kind) and kind.get_field_index("path") >= 0 else name
                    column = table.read(columns=[leaf])[name]
                    for row, present in zip(rows, column.is_valid().to_pylist(), strict=True):
                        row[name] = present
    except FileNotFoundError:
        raise EvaluationError(f"{file}: there is no such file") from None
    except (pa.ArrowException, OSError) as error:
        raise EvaluationError(f"{file}: not a complete Parquet file: {error}") from None
    return rows


def _images(row: Mapping[str, Any]) -> list[int]:
    """Returns the numbers of the images that the row contains or that its text refers to, even if they are missing."""
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
        allowed = ", ".join(LETTERS[: len(options)])
        raise EvaluationError(f"{where}: field `answer` must be one of {allowed}, found {answer!r}")
    right = _listed(where, "answer", answer) if kind == OPEN and answer.startswith("[") else [answer]
    if not row["question"].strip():
        raise EvaluationError(f"{where}: field `question` is empty")
    return Question(
        id=row["id"],
        fields={"question": row["question"].strip()},
        truth=None if answer in ("?", "") else _truth(right),
        options=tuple(options),
        groups=_groups(where, row["id"], kind),
        images=images,
    )


def _listed(where: str, name: str, text: str) -> list[str]:
    """Parses a field that contains a Python list of strings or numbers as text."""
    try:
        values = ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):  # TypeError: {[]}
        values = None
    if not isinstance(values, list) or not all(isinstance(value, str | int | float) for value in values):
        raise EvaluationError(f"{where}: field `{name}` must be a Python list of strings, found {text[:100]!r}")
    if name == "answer" and not values:
        raise EvaluationError(f"{where}: field `answer` is an empty list")
    return [str(value) for value in values]


def _truth(right: Sequence[str]) -> str:
    """Encodes the correct answers as one string: a single one unchanged, several as a JSON list."""
    return right[0] if len(right) == 1 and not right[0].startswith('["') else json.dumps(right, ensure_ascii=False)


def _truths(question: Question) -> list[str]:
    assert question.truth is not None
    return json.loads(question.truth) if question.truth.startswith('["') else [question.truth]


def _groups(where: str, key: str, kind: str) -> dict[str, str]:
    """Derives the groups of a question from an id such as validation_Art_Theory_3 and the kind of question."""
    subject = key.split("_")[1:-1]
    if not subject:
        raise EvaluationError(f"{where}: field `id` must be like validation_Accounting_1, found {key!r}")
    name = "_".join(subject)
    discipline = {"discipline": _DISCIPLINE_OF[name]} if name in _DISCIPLINE_OF else {}
    return {"subject": name, **discipline, "question_type": kind}


def read_predictions(path: Path, truth: Path | None, questions: Path | None) -> Predictions:
    """Reads `total_val_output.json`, which requires `truth`, or the output folder. truth: `answer_dict_val.json` or the
    hub's folder. questions: not used."""
    official = None if truth is None else {question.id: question for question in _read_truth(truth)}
    answers: dict[str, Answer] = {}
    asked: list[Question] = []
    for where, key, text, question in _outputs(path):
        if key in answers:
            raise EvaluationError(f"{where}: {key} is answered twice")
        if official is not None and key not in official:
            raise EvaluationError(f"{where}: {key} is not in {truth}: is it from another split?")
        if question is not None:
            asked.append(question if official is None else _checked(where, question, official[key]))
        answers[key] = Answer(text)
    if official is None:
        if not asked:
            raise EvaluationError(f"{path}: contains only answers: pass answer_dict_val.json (truth)")
        return Predictions(check_unique(asked, path), answers)
    with_options = {question.id: question for question in asked}
    return Predictions([with_options.get(key, question) for key, question in official.items()], answers)


def _read_truth(path: Path) -> list[Question]:
    if path.suffix != ".json":
        return read(path, None)
    found = []
    for key, row in read_object(path).items():
        where = f"{path}: {key}"
        if not isinstance(row, dict):
            raise EvaluationError(f"{where}: must be an object with question_type and ground_truth")
        check_fields(where, row, {"question_type": str, "ground_truth": (str, list)})
        right = row["ground_truth"] if isinstance(row["ground_truth"], list) else [row["ground_truth"]]
        if not right or not all(isinstance(each, str) for each in right):
            found_value = f"found {row['ground_truth']!r}"
            raise EvaluationError(f"{where}: field `ground_truth` must be a string or a list of strings, {found_value}")
        kind = CHOICE if row["question_type"] == CHOICE else OPEN
        found.append(Question(key, {}, _truth(right), groups=_groups(where, key, kind)))
    return found


def _outputs(path: Path) -> list[tuple[str, str, str, Question | None]]:
    """Returns [(where, id, response, the question if the file contains it)]."""
    if not path.is_dir():
        rows = read_object(path)
        if bad := [key for key, text in rows.items() if not isinstance(text, str)]:
            raise EvaluationError(f"{path}: {bad[0]}: the answer must be a string, found {rows[bad[0]]!r}")
        return [(str(path), key, text, None) for key, text in rows.items()]
    files = files_like(path, "*/output.json")
    if not files:
        raise EvaluationError(f"{path}: has no file like Accounting/output.json")
    found: list[tuple[str, str, str, Question | None]] = []
    for file in files:
        content = read_json(file)
        if not isinstance(content, list):
            raise EvaluationError(f"{file}: must contain a JSON list")
        for index, row in enumerate(content):
            where = f"{file}: row {index}"
            if not isinstance(row, dict):
                raise EvaluationError(f"{where}: must be an object")
            check_fields(where, row, {"id": str, "question_type": str, "answer": (str, list), "response": str})
            right = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
            if not right or not all(isinstance(each, str) for each in right):
                raise EvaluationError(
                    f"{where}: field `answer` must be a string or a list of strings, found {row['answer']!r}"
                )
            choices = row.get("index2ans") or {}
            options: tuple[str, ...] = ()
            kind = CHOICE if row["question_type"] == CHOICE else OPEN
            if kind == CHOICE:
                if not isinstance(choices, dict) or list(choices) != list(LETTERS[: len(choices)]) or not choices:
                    raise EvaluationError(
                        f"{where}: field `index2ans` must map the letters from A on to texts, found {choices!r}"
                    )
                options = tuple(str(text) for text in choices.values())
                if not set(right) <= set(choices):
                    allowed = ", ".join(choices)
                    raise EvaluationError(f"{where}: field `answer` must be one of {allowed}, found {row['answer']!r}")
            question = Question(row["id"], {}, _truth(right), options, _groups(where, row["id"], kind))
            found.append((where, row["id"], row["response"], question))
    return found


def _checked(where: str, ours: Question, official: Question) -> Question:
    """Returns our question, which has options. Raises EvaluationError if its truth differs from the official one."""
    if ours.truth != official.truth:
        raise EvaluationError(f"{where}: field `answer` is {ours.truth!r}, but the truth is {official.truth!r} for "
                              f"{ours.id}: is it from another version?")  # fmt: skip
    return ours


def mark(predictions: Predictions) -> dict[str, Mark]:
    """Marks each answer; `read` is a letter for multiple choice and the stripped text for open questions."""
    scored, _ = split_scorable(predictions)
    return {question.id: _mark(question, text) for question, text in scored}


def _mark(question: Question, text: str) -> Mark:
    if question.groups.get("question_type") != CHOICE:
        return Mark(text.strip() or None, float(matches(text, _truths(question))))
    if question.options:
        letter = choose(text, dict(zip(LETTERS, question.options, strict=False)))
    else:  # a file without options contains answers that are already parsed to letters
        letter = text.strip() if re.fullmatch("[A-Z]", text.strip()) else None
    return Mark(letter, float(letter is not None and letter in _truths(question)))


def score(predictions: Predictions) -> dict[str, Any]:
    """Returns accuracies in percent: overall, by discipline, by subject and by question type. A response from which no
    letter can be parsed is wrong; such responses are counted and listed."""
    _, report = split_scorable(predictions)
    marks = mark(predictions)
    result: dict[str, Any] = {"accuracy": accuracy(list(marks.values()))["accuracy"]}
    for kind, plural in (("discipline", "disciplines"), ("subject", "subjects"), ("question_type", "question_types")):
        result[plural] = accuracy_by(kind, predictions.questions, marks)
    unmatched = [key for key, mark in marks.items() if mark.read is None]
    return {
        **result,
        **report,
        "unmatched_answers": count_and_ids(unmatched),
        "parsing": "official rules, except that a response without option is wrong instead of getting a random letter",
    }


BENCHMARK = Benchmark("mmmu", read, read_predictions, mark, score)
