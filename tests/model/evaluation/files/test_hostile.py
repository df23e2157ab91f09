"""Damaged and hostile files cause one error that names the location, or an entry in the scores, never a traceback."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.workbooks import text_rows, write_workbook

from model.evaluation.asking.predictions import FORMAT, load
from model.evaluation.benchmarks import BENCHMARKS, EvaluationError, mmbench, mmmu, scienceqa

HEADER, ROW = ["index", "question", "A", "B", "answer", "prediction"], ["1", "q", "a", "b", "A", "A"]


def test_duplicate_column_names_are_refused(tmp_path: Path) -> None:
    path = write_workbook(tmp_path / "a.xlsx", text_rows([*HEADER, "prediction"], [*ROW, "B"]))
    with pytest.raises(EvaluationError, match="same header"):
        mmbench.read_predictions(path, None, None)
    tsv = tmp_path / "a.tsv"
    tsv.write_text("index\tquestion\tA\tB\tanswer\tanswer\timage\n1\tq\ta\tb\tA\tB\t\n")
    with pytest.raises(EvaluationError, match="two columns are named 'answer'"):
        mmbench.read(tsv, None)


def test_mmbench_indices_and_answers_are_checked(tmp_path: Path) -> None:
    path = write_workbook(tmp_path / "a.xlsx", text_rows(HEADER, ["9" * 5000, *ROW[1:]]))
    with pytest.raises(EvaluationError, match="row 2: field `index` must be an integer"):
        mmbench.read_predictions(path, None, None)
    tsv = tmp_path / "a.tsv"
    tsv.write_text("index\tquestion\tA\tB\tanswer\timage\n1\tq\ta\tb\tB\t\n")
    with pytest.raises(EvaluationError, match="`answer` is A, but B"):
        mmbench.read_predictions(write_workbook(path, text_rows(HEADER, ROW)), tsv, None)


def test_scienceqa_lists_and_choices_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "output.json"
    path.write_text('{"correct": 5, "incorrect": []}')
    with pytest.raises(EvaluationError, match="correct must be a list, not int"):
        scienceqa.read_predictions(path, None, None)
    problem = {"question": "q", "choices": ["x"] * 40, "answer": 30, "hint": "", "image": None, "subject": "s"}
    (tmp_path / "problems.json").write_text(json.dumps({"1": {**problem, "grade": "grade1"}}))
    (tmp_path / "pid_splits.json").write_text('{"test": ["1"]}')
    with pytest.raises(EvaluationError, match="problem 1: field `choices` must be"):
        scienceqa.read(tmp_path, None)


@pytest.mark.parametrize("text", ["{[]}", "{[]: 1}", "__import__('os')", "[" * 5000])
def test_mmmu_options_are_only_parsed_as_a_literal(text: str) -> None:
    with pytest.raises(EvaluationError, match="must be a Python list of strings"):
        mmmu._listed("a.parquet: row 0", "options", text)


def test_invalid_mmmu_answers_are_refused(tmp_path: Path) -> None:
    (tmp_path / "Art").mkdir()
    row = {"id": "validation_Art_1", "question_type": "multiple-choice", "response": "A", "index2ans": {"A": "a"}}
    for answer, message in (([], "a string or a list"), ([1], "a string or a list"), ("Z", "must be one of A")):
        (tmp_path / "Art" / "output.json").write_text(json.dumps([{**row, "answer": answer}]))
        with pytest.raises(EvaluationError, match=message):
            mmmu.read_predictions(tmp_path, None, None)
    (tmp_path / "Art" / "output.json").write_text(json.dumps([{**row, "answer": '["a', "question_type": "open"}]))
    assert mmmu.score(mmmu.read_predictions(tmp_path, None, None))["accuracy"] == 0


@pytest.mark.parametrize(
    "benchmark, changed, message",
    [
        ("seed_bench", {"options": [1, None]}, "`options` must contain only strings"),
        ("seed_bench", {"options": ["x"] * 40}, "40 options"),
        ("mmmu", {"groups": {"subject": []}}, "`groups` must contain only strings"),
        ("pope", {"groups": {}}, "`groups` has no split"),
        ("mme", {"groups": {"task": "count"}}, "`groups` has no image"),
        ("pope", {"groups": {"split": "random"}, "truth": "maybe"}, "must be one of yes, no"),
    ],
)
def test_lines_of_honeybees_format_are_checked(
    tmp_path: Path, benchmark: str, changed: dict[str, Any], message: str
) -> None:
    line = {"id": "1", "answer": "A", "error": None, "truth": "yes", "options": [], "fields": {}, "groups": {}}
    header = {"format": FORMAT, "benchmark": benchmark, "num_questions": 1, "settings": {}}
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in (header, {**line, "images": [], **changed})))
    with pytest.raises(EvaluationError, match=message) as error:
        load(BENCHMARKS[benchmark], path)
    assert f"{path}:2" in str(error.value)
