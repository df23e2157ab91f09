"""MMBench: single-choice questions, each repeated with its options rotated. (Liu et al., "MMBench", ECCV 2024)

Official file: a TSV with index, question, hint, A, B, …, answer, category, l2-category, image (base64), split.
A rotated copy has the index of its question plus k · 1,000,000; an image field that is a number refers to the image of
the row with that index. Official predictions: an .xlsx with index, question, options, prediction (and answer). A judge
is asked only about answers that the rule matches to no option; its verdict is a letter or NONE.
"""

import base64
import binascii
import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from model.evaluation.files.xlsx import read_xlsx
from model.evaluation.interface import (
    Answer,
    Benchmark,
    EvaluationError,
    Judge,
    Judging,
    Mark,
    Predictions,
    Question,
    QuestionImage,
)
from model.evaluation.judging.verdicts import ask_verdicts, judge_report
from model.evaluation.prompts import lettered
from model.evaluation.scoring.common import check_unique, count_and_ids, percent, split_scorable
from model.evaluation.scoring.match_option import match_option
from pipelines.core.errors import ImageRefError
from pipelines.schema import LETTERS

ROTATION = 1_000_000
_GROUPS = {"category": "category", "l2_category": "l2-category", "split": "split"}  # group: column of the TSV
NONE = "NONE"  # a judge's verdict that the answer means no option or more than one
_VERDICT = re.compile(
    r"\W*(?:(?:letter|answer|option)\W+)?(NONE|[A-Za-z])(?:\s*|[^\w\s'’].*|\s*\n.*)", re.IGNORECASE | re.DOTALL
)
_MAX_DIGITS = 18
_MAX_FIELD = 1 << 28  # characters, enough for an image in base64


def read(path: Path, images: Path | None) -> list[Question]:
    """Reads the questions of an official TSV, including the rotated copies; the ids are the index. The file contains
    the images, so `images` is not used."""
    rows = list(_tsv_rows(path))
    if not rows:
        raise EvaluationError(f"{path}: contains no questions")
    if "image" not in rows[0][1]:
        raise EvaluationError(f"{path}: has no column 'image'; it has {', '.join(rows[0][1])}")
    encoded = {_index(where, row): row["image"] for where, row in rows}
    images_by_text: dict[str, QuestionImage] = {}  # rotated copies share one image, which is stored once
    questions = []
    for where, row in rows:
        index = _index(where, row)
        text = _image_text(where, encoded, index)
        image = QuestionImage(f"{path.name}#{index}", partial(_decode, where, text))
        if text:
            image = images_by_text.setdefault(text, image)
        questions.append(_question(where, row, (image,)))
    return check_unique(questions, path)


def _tsv_rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields (`file:line`, row). Raises EvaluationError if the file is missing or a row does not match the header."""
    csv.field_size_limit(max(csv.field_size_limit(), _MAX_FIELD))
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter="\t", strict=True)
            header = next(reader, [])
            if repeated := {name for name in header if header.count(name) > 1}:
                raise EvaluationError(f"{path}: two columns are named {min(repeated)!r}")
            for cells in reader:
                where = f"{path}:{reader.line_num}"
                if len(cells) != len(header):
                    raise EvaluationError(
                        f"{where}: has {len(cells)} fields, but the header has {len(header)}: is the file truncated?"
                    )
                yield where, dict(zip(header, cells, strict=True))
    except (FileNotFoundError, IsADirectoryError):
        raise EvaluationError(f"{path}: there is no such file") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise EvaluationError(f"{path}: not a complete TSV file: {error}") from None


def _index(where: str, row: Mapping[str, str]) -> int:
    text = row.get("index", "").removesuffix(".0")
    if not text.isdecimal() or len(text) > _MAX_DIGITS:
        raise EvaluationError(f"{where}: field `index` must be an integer, found {row.get('index', '')[:40]!r}")
    return int(text)


def _question(where: str, row: Mapping[str, str], images: tuple[QuestionImage, ...]) -> Question:
    columns = [letter for letter in LETTERS if letter in row]
    options = [row[letter].strip() for letter in columns]
    while options and not options[-1]:
        options.pop()
    if len(options) < 2 or not all(options) or "".join(columns) != LETTERS[: len(columns)]:
        raise EvaluationError(f"{where}: there must be two or more options, from A on without gaps, found {options}")
    truth = row.get("answer", "").strip() or None
    if truth is not None and truth not in LETTERS[: len(options)]:
        allowed = ", ".join(LETTERS[: len(options)])
        raise EvaluationError(f"{where}: field `answer` must be one of {allowed}, found {truth!r}")
    question, hint = row.get("question", "").strip(), row.get("hint", "").strip()
    if not question:
        raise EvaluationError(f"{where}: field `question` is empty")
    return Question(
        id=str(_index(where, row)),
        fields={"question": question, "context": f"{hint}\n" if hint else ""},
        truth=truth,
        options=tuple(options),
        groups={group: row[column] for group, column in _GROUPS.items() if row.get(column)},
        images=images,
    )


def _image_text(where: str, encoded: Mapping[int, str], index: int) -> str:
    """Returns the base64 text of a question's image, following at most one reference; "" if there is none."""
    text = encoded[index]
    if not text.isdecimal() or len(text) > 12:
        return text
    if int(text) not in encoded:
        raise EvaluationError(f"{where}: refers to the image of index {text}, which is not in the file")
    return encoded[int(text)]


def _decode(where: str, text: str) -> bytes:
    if not text:
        raise ImageRefError("image_missing", f"{where}: the image field is empty")
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ImageRefError("image_corrupt", f"{where}: not base64: {error}") from None


def read_predictions(path: Path, truth: Path | None, questions: Path | None) -> Predictions:
    """Reads the official workbook. truth: the official TSV, which provides the answers and categories that the workbook
    lacks. questions: not used."""
    official = {question.id: question for question in read(truth, None)} if truth is not None else None
    asked: list[Question] = []
    answers: dict[str, Answer] = {}
    for number, row in enumerate(read_xlsx(path), start=2):
        where = f"{path}: row {number}"
        if "prediction" not in row:
            raise EvaluationError(f"{where}: has no column 'prediction'; it has {', '.join(row)}")
        question = _question(where, row, ())
        if official is not None:
            if question.id not in official:
                raise EvaluationError(f"{where}: index {question.id} is not in {truth}: is it from another split?")
            if official[question.id].options != question.options:
                raise EvaluationError(f"{where}: the options differ from those in {truth}: is it another version?")
            match = official[question.id]
            if None not in (question.truth, match.truth) and question.truth != match.truth:
                raise EvaluationError(f"{where}: field `answer` is {question.truth}, but {match.truth} in {truth}")
            question = match
        asked.append(question)
        if question.id in answers:
            raise EvaluationError(f"{where}: index {question.id} is answered twice")
        answers[question.id] = Answer(row["prediction"])
    if asked and all(question.truth is None for question in asked):
        raise EvaluationError(f"{path}: contains no ground-truth answers: pass the official TSV (truth)")
    return Predictions(check_unique(asked if official is None else list(official.values()), path), answers)


def judge(predictions: Predictions, judge: Judge) -> Judging:
    """Asks for verdicts on the answers that the rule does not match, except for empty ones, which match no option."""
    scored, _ = split_scorable(predictions)
    unmatched = {
        question.id: (question, text)
        for question, text in scored
        if text.strip() and match_option(text, question.options) is None
    }
    asked = {
        key: {"question": question.fields["question"], "options": lettered(question.options), "answer": text.strip()}
        for key, (question, text) in unmatched.items()
    }
    return ask_verdicts(judge, "mmbench", asked, lambda key, reply: parse(reply, len(unmatched[key][0].options)))


def parse(reply: str, num_options: int) -> str | None:
    """Returns the letter that a judge's reply starts with, or NONE; None if it starts with neither."""
    match = _VERDICT.fullmatch(reply.strip())
    verdict = "" if match is None else match[1].upper()
    return verdict if verdict == NONE or (verdict and verdict in LETTERS[:num_options]) else None


def mark(predictions: Predictions) -> dict[str, Mark]:
    """Marks each row independently: `read` is the letter that the rule or else the judge matched to the answer."""
    scored, _ = split_scorable(predictions)
    verdicts = {} if predictions.judging is None else predictions.judging.verdicts
    marks = {}
    for question, text in scored:
        letter = match_option(text, question.options) or verdicts.get(question.id)
        marks[question.id] = Mark(None if letter == NONE else letter, float(letter == question.truth))
    return marks


def score(predictions: Predictions) -> dict[str, Any]:
    """Returns accuracies in percent, overall, by category and by the coarser l2_category.

    accuracy ("vanilla"): over the questions without their rotated copies. circular: a question is correct only if all
    its copies are; None if there are no copies. An answer that neither the rule nor a judge matches to an option is
    wrong; such answers are counted and listed.
    """
    questions = predictions.questions
    _, report = split_scorable(predictions)
    marks = mark(predictions)
    right = {key: mark.credit == 1 for key, mark in marks.items()}
    copies: dict[str, list[str]] = {}  # a question's id → the ids of all its rows
    for question in questions:
        copies.setdefault(str(int(question.id) % ROTATION), []).append(question.id)
    if orphans := [base for base, ids in copies.items() if base not in ids]:
        raise EvaluationError(f"{len(orphans)} questions have only rotated copies, no original row: {orphans[:5]}")
    has_copies = len(copies) < len(questions)

    def accuracies(bases: Sequence[str]) -> dict[str, Any]:
        complete = [base for base in bases if all(row in right for row in copies[base])]
        return {
            "accuracy": _share([right[base] for base in bases if base in right]),
            "circular": _share([all(right[row] for row in copies[base]) for base in complete]) if has_copies else None,
            "num_questions": len(bases),
        }

    result = report | accuracies(list(copies)) | {"num_rows": len(questions)}
    for kind, plural in (("category", "categories"), ("l2_category", "l2_categories")):
        members: dict[str, list[str]] = {}
        for question in questions:
            if kind in question.groups and question.id in copies:
                members.setdefault(question.groups[kind], []).append(question.id)
        result[plural] = {name: accuracies(bases) for name, bases in sorted(members.items())}
    unmatched = [key for key, mark in marks.items() if mark.read is None]
    verdicts = {} if predictions.judging is None else predictions.judging.verdicts
    by_judge = sum(marks[key].read is not None for key in verdicts if key in marks)
    result["matched"] = {"rule": len(marks) - by_judge - len(unmatched), "judge": by_judge, "neither": len(unmatched)}
    result["unmatched_answers"] = count_and_ids(unmatched)
    result["parsing"] = "by rule: option letter or option text; an answer that matches no option is wrong"
    if predictions.judging is not None:
        result["parsing"] = "by rule (option letter or text), else by the judge; an answer that matches none is wrong"
    return result | judge_report(predictions)


def _share(right: Sequence[bool]) -> float | None:
    return percent(sum(right), len(right))


BENCHMARK = Benchmark("mmbench", read, read_predictions, mark, score, judge)
