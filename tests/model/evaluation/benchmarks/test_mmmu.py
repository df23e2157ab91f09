"""MMMU: the hub's Parquet files, the official parsing and the published accuracy."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.evaluation.asking.predictions import load
from model.evaluation.benchmarks import mmmu
from model.evaluation.benchmarks.mmmu_parse import choose, matches
from model.evaluation.interface import Answer, EvaluationError, Predictions, Question
from model.evaluation.prompts import load_prompt
from pipelines.core.errors import ImageRefError

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def row(**changes: Any) -> dict[str, Any]:
    content: dict[str, Any] = {
        "id": "validation_Art_1",
        "question": "<image 1> Which?",
        "options": "['red', 'it\\'s blue', '7']",
        "answer": "B",
        "question_type": "multiple-choice",
        "image_1": {"bytes": b"first", "path": "1.png"},
        "image_2": None,
    }
    return content | changes


def write(directory: Path, rows: list[dict[str, Any]], subject: str = "Art") -> Path:
    path = directory / subject / "validation-00000-of-00001.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    kinds = {name: IMAGE if name.startswith("image_") else pa.string() for name in row()}
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(list(kinds.items()))), path)
    return directory


def test_multiple_choice_and_open_questions_are_read(tmp_path):
    several = row(
        id="validation_Art_Theory_2",
        question="<image 2> and <image 1>?",
        answer="['a', '3.5']",
        options="[]",
        question_type="open",
        image_2={"bytes": b"second", "path": None},
    )
    write(tmp_path, [row()])
    write(tmp_path, [several], "Art_Theory")
    (tmp_path / "Art" / "test-00000-of-00001.parquet").write_bytes(b"not read")
    one, two = mmmu.read(tmp_path, tmp_path)
    assert one.options == ("red", "it's blue", "7") and one.truth == "B"
    assert one.groups == {"subject": "Art", "discipline": "Art and Design", "question_type": "multiple-choice"}
    assert [image.read() for image in one.images] == [b"first"]
    assert two.groups["subject"] == "Art_Theory" and two.groups["question_type"] == "open"
    assert [image.read() for image in two.images] == [b"first", b"second"] and two.images[0].name != one.images[0].name
    prompt = load_prompt("mmmu")
    assert prompt.render(one).startswith("<image 1> Which?\nA. red\nB. it's blue\nC. 7\nReply with the letter")
    assert prompt.render(two).endswith("Reply with one word or a short phrase.") and "letter" not in prompt.render(two)
    answers = {one.id: Answer("(B)"), two.id: Answer("It is 3.50.")}
    assert mmmu.score(Predictions([one, two], answers))["accuracy"] == 100
    assert mmmu.read(tmp_path / "Art" / "validation-00000-of-00001.parquet", None)[0].images == ()


def test_a_referenced_image_that_the_row_lacks_is_an_error_when_read(tmp_path):
    (question,) = mmmu.read(write(tmp_path, [row(question="<image 1> <image 2> Which?")]), tmp_path)
    assert question.images[0].read() == b"first"
    with pytest.raises(ImageRefError, match=r"image_2:0.* is null"):
        question.images[1].read()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"options": "__import__('os')"}, r"parquet: row 0: field `options` must be a Python list .* found .*import"),
        ({"options": "[red"}, "must be a Python list of strings"),
        ({"options": "[]"}, r"question_type is 'multiple-choice', but options are '\[\]'"),
        ({"answer": "D"}, "field `answer` must be one of A, B, C, found 'D'"),
        ({"question_type": "open"}, "question_type is 'open', but options"),
        ({"id": "validation"}, "must be like validation_Accounting_1"),
        ({"question": " "}, "field `question` is empty"),
        ({"answer": None}, "field `answer` has the wrong type, found None"),
    ],
)
def test_invalid_rows_are_errors(tmp_path, changes, message):
    with pytest.raises(EvaluationError, match=message):
        mmmu.read(write(tmp_path, [row(**changes)]), None)


def test_invalid_files_are_errors(tmp_path):
    with pytest.raises(EvaluationError, match="has no file like Accounting/validation"):
        mmmu.read(tmp_path, None)
    with pytest.raises(EvaluationError, match="there is no such file"):
        mmmu.read(tmp_path / "no.parquet", None)
    with pytest.raises(EvaluationError, match="1 duplicate question ids: validation_Art_1"):
        mmmu.read(write(tmp_path, [row(), row()]), None)
    path = tmp_path / "Art" / "validation-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(EvaluationError, match=r"validation-00000-of-00001\.parquet: not a complete Parquet file"):
        mmmu.read(tmp_path, None)
    pq.write_table(pa.table({"id": ["a"]}), path)
    with pytest.raises(EvaluationError, match="has no column question, options, answer, question_type; it has id"):
        mmmu.read(tmp_path, None)
    (question,) = mmmu.read(write(tmp_path, [row(answer="?")]), None)  # as in the test split
    with pytest.raises(EvaluationError, match="none of 1 questions can be scored"):
        mmmu.score(Predictions([question], {question.id: Answer("A")}))


OPTIONS = {"A": "a red circle", "B": "two dogs", "C": "cats"}


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        (" (C) cats", "C"),
        ("The answer is B", "B"),
        ("A B", "B"),  # the last letter counts
        ("(A) is wrong, so it is (B) or C", "B"),  # letters in parentheses take precedence
        ("I think that one sees two dogs there", "B"),
        ("I think that there are cats and then two dogs", "B"),
        ("two dogs", None),  # option texts are only searched in responses of six or more words
        ("b", None),
        ("", None),
        ("I do not know what it may be at all", None),
    ],
)
def test_choices_are_parsed_by_the_official_rules(response, letter):
    assert choose(response, OPTIONS) == letter


@pytest.mark.parametrize(
    ("response", "truths", "right"),
    [
        ("24.316", ["24.32"], True),
        ("1,200", ["1200"], True),
        ("so the result is 1.2e3 N", ["1200"], True),
        ("x = 5", ["5"], True),
        ("6 + 5 = 11", ["5"], False),
        ("The answer is 4.\nI mean it is 5", ["4"], True),  # every line counts
        ("It is Transformation.", ["transformation"], True),
        ("the embryonic stage", ["embryonic"], True),
        ("answer c", ["C"], True),
        ("abc", ["C"], False),  # a single character must be next to a space
        ("it is vitamin c here", ["C"], True),
        ("Florida", ["Tampa", "Florida"], True),
        ("nowhere", ["Tampa", "Florida"], False),
        ("", ["5"], False),
    ],
)
def test_open_answers_are_compared_by_the_official_rules(response, truths, right):
    assert matches(response, truths) == right


def _choice(number: int, subject: str) -> Question:
    groups = {"subject": subject, "discipline": "Science", "question_type": "multiple-choice"}
    return Question(f"validation_{subject}_{number}", {}, "A", ("x", "y"), groups)


def test_scores_by_subject_and_unmatched_answers():
    questions = [_choice(1, "Math"), _choice(2, "Math"), _choice(1, "Physics"), _choice(2, "Physics")]
    texts = ["A", "B", "hm", None]
    answers = {q.id: Answer(t, None if t else "image_missing: x") for q, t in zip(questions, texts, strict=True)}
    predictions = Predictions(questions, answers)
    scores = mmmu.score(predictions)
    assert scores["subjects"]["Math"] == {"accuracy": 50, "num_scored": 2}
    assert scores["subjects"]["Physics"] == {"accuracy": 0, "num_scored": 1}
    assert scores["disciplines"] == {"Science": {"accuracy": pytest.approx(100 / 3), "num_scored": 3}}
    assert scores["unmatched_answers"] == {"count": 1, "ids": ["validation_Physics_1"]}
    assert scores["not_asked"]["errors"] == {"validation_Physics_2": "image_missing: x"}
    assert "random" in scores["parsing"]
    assert {key: mark.read for key, mark in mmmu.mark(predictions).items()} == {
        "validation_Math_1": "A", "validation_Math_2": "B", "validation_Physics_1": None,
    }  # fmt: skip


@pytest.mark.realdata
def test_published_accuracy_is_reproduced(realdata):
    folder = realdata / "scorers" / "mmmu"
    total = folder / "llava1.5_13b" / "total_val_output.json"
    scores = mmmu.score(load(mmmu.BENCHMARK, total, folder / "answer_dict_val.json"))
    assert round(scores["accuracy"] / 100, 3) == 0.367 and scores["num_scored"] == 900
    assert len(scores["subjects"]) == 30 and len(scores["disciplines"]) == 6
    assert scores["disciplines"]["Art and Design"] == {"accuracy": 52.5, "num_scored": 120}
    assert scores["subjects"]["Literature"]["accuracy"] == pytest.approx(73.333, abs=0.001)


@pytest.mark.realdata
def test_raw_outputs_differ_only_by_the_random_letters_of_the_authors(realdata):
    folder = realdata / "scorers" / "mmmu"
    truth = folder / "answer_dict_val.json"
    parsed = load(mmmu.BENCHMARK, folder / "llava1.5_13b" / "total_val_output.json", truth)
    raw = load(mmmu.BENCHMARK, folder / "llava1.5_13b", truth)
    theirs, ours = mmmu.mark(parsed), mmmu.mark(raw)
    choices = [q.id for q in raw.questions if q.groups["question_type"] == "multiple-choice"]
    assert [key for key in choices if theirs[key].read != ours[key].read] == [
        key for key in choices if ours[key].read is None
    ]
    scores = mmmu.score(raw)
    assert scores["unmatched_answers"]["count"] == 2
    assert round(scores["accuracy"], 2) == 36.56, "one of the two random letters was correct"
    assert mmmu.score(load(mmmu.BENCHMARK, folder / "llava1.5_13b"))["accuracy"] == scores["accuracy"]


def _output(directory: Path, content: Any) -> Path:
    (directory / "Art").mkdir(exist_ok=True)
    (directory / "Art" / "output.json").write_text(json.dumps(content))
    return directory


def test_invalid_predictions_are_errors(tmp_path):
    truth = tmp_path / "answer_dict_val.json"
    truth.write_text(json.dumps({"validation_Art_1": {"question_type": "multiple-choice", "ground_truth": "B"}}))
    path = tmp_path / "p.json"
    for content, message in [
        ({"test_Art_1": "A"}, "test_Art_1 is not in .*: is it from another split"),
        ({"validation_Art_1": 3}, r"p\.json: validation_Art_1: the answer must be a string, found 3"),
        ([], "JSON object"),
    ]:
        path.write_text(json.dumps(content))
        with pytest.raises(EvaluationError, match=message):
            load(mmmu.BENCHMARK, path, truth)
    path.write_text(json.dumps({"validation_Art_1": "A"}))
    with pytest.raises(EvaluationError, match="contains only answers: pass answer_dict_val"):
        load(mmmu.BENCHMARK, path)
    good = {"id": "validation_Art_1", "question_type": "multiple-choice", "answer": "B", "response": "B",
            "index2ans": {"A": "x", "B": "y"}}  # fmt: skip
    for content, message in [
        ({}, "must contain a JSON list"),
        ([3], r"output\.json: row 0: must be an object"),
        ([good, good], r"output\.json: row 1: validation_Art_1 is answered twice"),
        ([good | {"index2ans": {"B": "x"}}], "must map the letters from A on"),
        ([good | {"answer": "A"}], "`answer` is 'A', but the truth is 'B' for validation_Art_1"),
        ([{"id": "validation_Art_1"}], "has no field `question_type`"),
    ]:
        with pytest.raises(EvaluationError, match=message):
            load(mmmu.BENCHMARK, _output(tmp_path, content), truth)
    assert mmmu.score(load(mmmu.BENCHMARK, _output(tmp_path, [good]), truth))["accuracy"] == 100
