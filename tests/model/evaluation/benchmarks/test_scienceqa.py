"""ScienceQA: the published accuracies, scores computed by hand, and valid and invalid official files."""

import json
from pathlib import Path
from typing import Any

import pytest

from model.evaluation.asking.predictions import load
from model.evaluation.benchmarks import scienceqa
from model.evaluation.interface import EvaluationError
from pipelines.core.errors import ImageRefError


@pytest.mark.realdata
def test_published_accuracies_are_reproduced(realdata):
    path = realdata / "scorers" / "scienceqa" / "llava-v1.5-13b_output.jsonl"
    scores = scienceqa.score(load(scienceqa.BENCHMARK, path))
    assert (round(scores["accuracy"], 2), round(scores["accuracy_image"], 2)) == (74.39, 71.64)
    assert (scores["num_questions"], scores["num_scored"]) == (4241, 4241)
    assert scores["unread_answers"]["count"] == 5
    assert "subjects" not in scores  # the file does not contain them
    assert scores["parsing"].startswith("LLaVA")


@pytest.mark.realdata
def test_published_answers_are_parsed_like_llavas_script(realdata):
    output = json.loads((realdata / "scorers" / "scienceqa" / "llava-v1.5-13b_output.jsonl").read_text())
    for row in output["correct"] + output["incorrect"]:
        assert (scienceqa.parse(row["pred"]) or "FAILED") == row["parsed_ans"]


@pytest.mark.realdata
def test_a_corpus_without_test_split_is_an_error(realdata):
    with pytest.raises(EvaluationError, match=r"pid_splits\.json: contains no questions"):
        scienceqa.read(realdata / "corpus" / "ScienceQA", None)


def _problem(**changes: Any) -> dict[str, Any]:
    problem = {"question": "Which?", "choices": ["red", "blue"], "answer": 0, "hint": "", "image": None}
    return problem | {"subject": "natural science", "grade": "grade1", "split": "test"} | changes


def _official(folder: Path, *problems: dict[str, Any], ids: Any = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "problems.json").write_text(json.dumps({str(n): p for n, p in enumerate(problems, start=1)}))
    split = [str(n) for n in range(1, len(problems) + 1)] if ids is None else ids
    (folder / "pid_splits.json").write_text(json.dumps({"train": [], "test": split}))
    return folder


def _lines(path: Path, *texts: str | None) -> Path:
    rows = [{"question_id": str(n), "text": text} for n, text in enumerate(texts, start=1) if text is not None]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_scores_by_class_computed_by_hand(tmp_path):
    truth = _official(
        tmp_path / "data",
        _problem(hint="Look.", image="image.png", grade="grade6"),
        _problem(subject="social science", image="image.png", grade="grade7"),
        _problem(subject="language science", hint="Read.", grade="grade12"),
        _problem(answer=1),
    )
    scores = scienceqa.score(load(scienceqa.BENCHMARK, _lines(tmp_path / "a.jsonl", "A", "B", "A. red", "A"), truth))
    accuracies = {
        name: {key: (values["accuracy"], values["num_scored"]) for key, values in scores[name].items()}
        for name in ("subjects", "contexts", "grades")
    }
    assert accuracies == {
        "subjects": {"NAT": (50.0, 2), "SOC": (0.0, 1), "LAN": (100.0, 1)},
        "contexts": {"TXT": (100.0, 2), "IMG": (50.0, 2), "NO": (0.0, 1)},
        "grades": {"G1-6": (50.0, 2), "G7-12": (50.0, 2)},
    }
    assert (scores["accuracy"], scores["accuracy_image"], scores["split"]) == (50.0, 50.0, "test")
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        (" B\n", None),  # LLaVA's rule turns a line break into a full stop
        (" B ", "B"),
        ("B. blue", "B"),
        ("B\nIt is blue", "B"),
        ("It is blue. The answer is B.", "B"),
        ("The answer is A? The answer is B.", "B"),
        ("The answer is B because", "B"),
        ("b", None),
        ("B.", None),
        ("(B)", None),
        ("blue", None),
        ("", None),
        ("F", None),
    ],
)
def test_answers_are_parsed_by_llavas_rule_and_others_reported(tmp_path, text, letter):
    assert scienceqa.parse(text) == letter
    truth = _official(tmp_path / "data", _problem(answer=1))
    predictions = load(scienceqa.BENCHMARK, _lines(tmp_path / "a.jsonl", text), truth)
    assert scienceqa.mark(predictions)["1"].read == letter
    scores = scienceqa.score(predictions)
    assert scores["accuracy"] == (100.0 if letter == "B" else 0.0)
    assert scores["unread_answers"]["ids"] == ([] if letter else ["1"])


def _row(**changes: Any) -> dict[str, Any]:
    row = {"question_id": "1", "ground_truth": "A", "question": "<image>\nWhich?", "pred": "A", "is_multimodal": True}
    return row | changes


def _output(path: Path, correct: list[Any], incorrect: list[Any]) -> Path:
    path.write_text(json.dumps({"correct": correct, "incorrect": incorrect}, indent=2))
    return path


def test_an_unanswered_question_is_reported_and_not_scored(tmp_path):
    unanswered = _row(question_id="2", pred="FAILED", question="Unknown", is_multimodal=False)
    path = _output(tmp_path / "o.jsonl", [_row()], [unanswered])
    scores = scienceqa.score(load(scienceqa.BENCHMARK, path))
    assert (scores["accuracy"], scores["num_scored"]) == (100.0, 1)
    assert scores["without_answer"] == {"count": 1, "ids": ["2"]}


def test_output_and_truth_must_be_consistent(tmp_path):
    truth = _official(tmp_path / "data", _problem(), _problem())
    path = _output(tmp_path / "o.jsonl", [_row()], [])
    scores = scienceqa.score(load(scienceqa.BENCHMARK, path, truth))
    assert scores["without_answer"]["ids"] == ["2"] and scores["subjects"]["NAT"]["num_scored"] == 1
    for rows, message in [
        ([_row(ground_truth="B")], r"correct\[0\]: ground_truth is B, but A in "),
        ([_row(question_id="9")], "question_id 9 is not in .*data: is it from another split"),
        ([_row(), _row()], r"correct\[1\]: question_id 1 is answered twice"),
        ([_row(is_multimodal=1)], r"correct\[0\]: field `is_multimodal` must be true or false, found 1"),
        ([_row(ground_truth="AB")], "field `ground_truth` must be a letter, found 'AB'"),
        (["A"], r"correct\[0\]: must be an object, not str"),
    ]:
        with pytest.raises(EvaluationError, match=message):
            load(scienceqa.BENCHMARK, _output(tmp_path / "o.jsonl", rows, []), truth)


def test_invalid_answers_are_errors(tmp_path):
    truth = _official(tmp_path / "data", _problem())
    path = _lines(tmp_path / "a.jsonl", "A")
    with pytest.raises(EvaluationError, match=r"require the folder with problems\.json"):
        load(scienceqa.BENCHMARK, path)
    for text, message in [
        (path.read_text() * 2, r"a\.jsonl:2: question_id 1 is answered twice"),
        ('{"question_id": "7", "text": "A"}\n', r"a\.jsonl:1: question_id 7 is not in .*: is it from another split"),
        ('{"question_id": "1", "te', r"a\.jsonl:1: not a complete JSON line"),
        ('{"correct": [', "not a complete JSON file"),
        ('{"correct": []}', "has no key 'incorrect'"),
    ]:
        path.write_text(text)
        with pytest.raises(EvaluationError, match=message):
            load(scienceqa.BENCHMARK, path, truth)


def test_images_are_found_below_the_folder_or_its_images_folder(tmp_path):
    data = _official(tmp_path / "data", _problem(image="image.png"), _problem())
    folder = data / "images" / "test" / "1"
    folder.mkdir(parents=True)
    (folder / "image.png").write_bytes(b"png")
    for root, name in ((data, "images/test/1/image.png"), (data / "images", "test/1/image.png")):
        with_image, without = scienceqa.read(data, root)
        assert [image.name for image in with_image.images] == [name] and without.images == ()
        assert with_image.images[0].read() == b"png"
    (folder / "image.png").unlink()
    with pytest.raises(ImageRefError, match=r"test/1/image\.png"):
        with_image.images[0].read()
    assert scienceqa.read(data / "problems.json", None)[0].options == ("red", "blue")


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (
            _problem(answer=2),
            r"problems\.json: problem 1: field `answer` must be the index of a choice, from 0 to 1, found 2",
        ),
        (_problem(choices=["red"]), r"field `choices` must be 2 to 26 strings, found \['red'\]"),
        (_problem(choices=["red", 1]), "field `choices` must be 2 to 26 strings"),
        (_problem(question=" "), "problem 1: field `question` is empty"),
        (_problem(hint=3), "field `hint` has the wrong type, found 3"),
    ],
)
def test_invalid_problems_are_errors(tmp_path, problem, message):
    with pytest.raises(EvaluationError, match=message):
        scienceqa.read(_official(tmp_path / "data", problem), None)


def test_invalid_splits_are_errors(tmp_path):
    folder = tmp_path / "data"
    for ids, message in [
        (["1", "2"], "problem 2: is missing, although pid_splits.json lists it"),
        (["1", "1"], "1 duplicate question ids: 1"),
        ([1], "must be a list of problem ids, as strings"),
        ([], "contains no questions"),
    ]:
        with pytest.raises(EvaluationError, match=message):
            scienceqa.read(_official(folder, _problem(), ids=ids), None)
    (folder / "pid_splits.json").write_text('{"train": []}')
    with pytest.raises(EvaluationError, match=r"pid_splits\.json: has no key 'test'; it has train"):
        scienceqa.read(folder, None)
    (folder / "pid_splits.json").unlink()
    with pytest.raises(EvaluationError, match=r"pid_splits\.json: there is no such file"):
        scienceqa.read(folder, None)
