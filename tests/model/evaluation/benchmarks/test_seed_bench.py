"""SEED-Bench: the published accuracy, scores computed by hand, and valid and invalid official files."""

import json
from pathlib import Path
from typing import Any

import pytest

from model.evaluation.asking.predictions import load
from model.evaluation.benchmarks import seed_bench
from model.evaluation.interface import EvaluationError
from pipelines.core.errors import ImageRefError


@pytest.mark.realdata
def test_published_accuracy_is_reproduced(realdata):
    folder = realdata / "scorers" / "seed_bench"
    scores = seed_bench.score(load(seed_bench.BENCHMARK, folder / "llava-v1.5-13b.jsonl", folder / "truth.jsonl"))
    assert round(scores["accuracy"], 2) == 68.21
    assert (scores["num_questions"], scores["num_scored"], scores["video_questions"]) == (14233, 14233, 5009)
    assert scores["duplicate_ids"] == {"count": 1, "ids": ["49914#2"]}
    assert scores["unmatched_answers"]["count"] == 0
    assert scores["dimensions"] == {}  # the truth file does not contain them


TYPES = {"Instance Location": 3, "Instance Attributes": 4, "Instances Counting": 5, "Spatial Relation": 6}


def _row(question_id: str, **changes: Any) -> dict[str, Any]:
    choices = {"choice_a": "red", "choice_b": "blue", "choice_c": "green", "choice_d": 4}
    row = {"question_id": question_id, "question": "Which?", **choices, "answer": "A", "data_id": "1_2"}
    return row | {"data_type": "image", "question_type_id": 3} | changes


def _official(path: Path, *rows: Any, types: Any = None) -> Path:
    path.write_text(json.dumps({"questions": rows, "question_type": TYPES if types is None else types}))
    return path


def _lines(path: Path, field: str, *pairs: tuple[Any, str]) -> Path:
    path.write_text("".join(json.dumps({"question_id": key, field: value}) + "\n" for key, value in pairs))
    return path


def test_scores_by_dimension_computed_by_hand(tmp_path):
    official = _official(
        tmp_path / "SEED-Bench.json",
        _row("1"),
        _row("2", question_type_id=6, answer="B"),
        _row("3", question_type_id=6, answer="D"),
        _row("v1", data_type="video", data_id="a.webm"),
    )
    path = _lines(tmp_path / "a.jsonl", "prediction", ("1", "b"), (2, "Blue."), ("3", "It shows 4"), ("v1", "A"))
    for questions in ({"truth": official}, {"questions": official}):
        scores = seed_bench.score(load(seed_bench.BENCHMARK, path, **questions))
        assert scores["accuracy"] == pytest.approx(200 / 3)
        assert scores["dimensions"] == {
            "instance_location": {"accuracy": 0.0, "num_scored": 1},
            "spatial_relation": {"accuracy": 100.0, "num_scored": 2},
        }
        assert (scores["num_questions"], scores["video_questions"]) == (3, 1)
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("Spatial Relation", "spatial_relation"),
        ("Instance Location", "instance_location"),
        ("Instance Localization", "instance_location"),
        ("Instances Counting", "instance_counting"),
        ("Text Recognition", "text_understanding"),
    ],
)
def test_names_of_a_dimension_map_to_one_key(name, key):
    assert seed_bench.dimension_key(name) == key


@pytest.mark.parametrize(
    ("text", "letter"), [("B", "B"), ("b", "B"), ("(B).", "B"), ("The answer is B.", "B"), ("", None), ("A or B", None)]
)
def test_letters_are_parsed_without_options(tmp_path, text, letter):
    truth = _lines(tmp_path / "truth.jsonl", "answer", ("1", "B"))
    predictions = load(seed_bench.BENCHMARK, _lines(tmp_path / "a.jsonl", "prediction", ("1", text)), truth)
    assert seed_bench.mark(predictions)["1"].read == letter
    scores = seed_bench.score(predictions)
    assert scores["accuracy"] == (100.0 if letter else 0.0)
    assert scores["unmatched_answers"]["ids"] == ([] if letter else ["1"])


def test_a_duplicate_id_counts_twice_and_is_reported(tmp_path):
    official = _official(tmp_path / "SEED-Bench.json", _row("1"), _row("1", answer="B", question="And now?"))
    assert [q.id for q in seed_bench.read(official, None)] == ["1", "1#2"]
    path = _lines(tmp_path / "a.jsonl", "prediction", ("1", "A"), ("1", "A"))
    scores = seed_bench.score(load(seed_bench.BENCHMARK, path, official))
    assert (scores["accuracy"], scores["duplicate_ids"]["ids"]) == (50.0, ["1#2"])
    truth = _lines(tmp_path / "truth.jsonl", "answer", ("1", "A"), ("2", "A"))
    scores = seed_bench.score(load(seed_bench.BENCHMARK, path, truth))
    assert (scores["num_scored"], scores["duplicate_ids"]["ids"]) == (2, ["1#2"])
    assert scores["without_answer"] == {"count": 1, "ids": ["2"]}
    _lines(path, "prediction", ("1", "A"), ("1", "B"))
    with pytest.raises(EvaluationError, match=r"a\.jsonl:2: question_id 1 is answered 'B' here, 'A' earlier"):
        load(seed_bench.BENCHMARK, path, truth)
    _lines(truth, "answer", ("1", "A"), ("1", "A"))
    with pytest.raises(EvaluationError, match="1 duplicate question ids: 1"):
        load(seed_bench.BENCHMARK, path, truth)


def test_invalid_predictions_are_errors(tmp_path):
    truth = _lines(tmp_path / "truth.jsonl", "answer", ("1", "A"))
    path = _lines(tmp_path / "a.jsonl", "prediction", ("1", "A"))
    for arguments in ({}, {"truth": truth, "questions": truth}):
        with pytest.raises(
            EvaluationError, match=r"require either SEED-Bench\.json \(questions\) or the correct answers \(truth\)"
        ):
            load(seed_bench.BENCHMARK, path, **arguments)
    with pytest.raises(EvaluationError, match=r"nowhere\.json: there is no such file"):
        load(seed_bench.BENCHMARK, path, tmp_path / "nowhere.json")
    for rows, message in [
        ([("7", "A")], r"a\.jsonl:1: question_id 7 is not in .*truth\.jsonl: is it from another version"),
        ([("v7", "A")], r"a\.jsonl: answers no image questions"),
        ([(None, "A")], r"a\.jsonl:1: field `question_id` has the wrong type, found None"),
    ]:
        with pytest.raises(EvaluationError, match=message):
            load(seed_bench.BENCHMARK, _lines(path, "prediction", *rows), truth)
    with pytest.raises(EvaluationError, match=r"truth\.jsonl:1: field `answer` must be one of A, B, C, D, found 'E'"):
        load(seed_bench.BENCHMARK, path, _lines(truth, "answer", ("1", "E")))


def test_images_are_named_by_data_id(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1_2").write_bytes(b"jpeg")
    official = _official(tmp_path / "SEED-Bench.json", _row("1"), _row("2", data_id="3_4"))
    here, gone = seed_bench.read(official, tmp_path / "images")
    assert here.images[0].name == "1_2" and here.images[0].read() == b"jpeg"
    assert here.options == ("red", "blue", "green", "4")
    with pytest.raises(ImageRefError, match="3_4"):
        gone.images[0].read()
    with pytest.raises(EvaluationError, match=r"image root .* is not a directory"):
        seed_bench.read(official, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (_row("1", answer="E"), r"questions\[0\]: field `answer` must be one of A, B, C, D, found 'E'"),
        (_row("1", data_type="sound"), "field `data_type` must be image or video, found 'sound'"),
        (_row("1", question_type_id=7), "question_type_id 7 is not in `question_type`"),
        (_row("1", question=" "), "field `question` is empty"),
        (_row("1", choice_a=None), "field `choice_a` has the wrong type, found None"),
        ({"question_id": "1"}, "has no field `data_type`"),
        ("1", "must be an object, not str"),
        (_row("v1", data_type="video"), "contains no questions"),
    ],
)
def test_invalid_rows_are_errors(tmp_path, row, message):
    with pytest.raises(EvaluationError, match=message):
        seed_bench.read(_official(tmp_path / "SEED-Bench.json", row), None)


def test_invalid_files_are_errors(tmp_path):
    path = tmp_path / "SEED-Bench.json"
    for content, message in [
        ("[]", "must contain a JSON object, not list"),
        ('{"questions": []}', "has no key 'question_type'; it has questions"),
        ('{"questions": [', "not a complete JSON file"),
        ('{"questions": {}, "question_type": {}}', "`questions` must be a list"),
        ('{"questions": [], "question_type": {"a": "1"}}', "`question_type` an object, dimension → id"),
    ]:
        path.write_text(content)
        with pytest.raises(EvaluationError, match=message):
            seed_bench.read(path, None)
