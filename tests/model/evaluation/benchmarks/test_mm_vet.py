"""MM-Vet: the official files, the published totals and the grades of a judge."""

import dataclasses
import json
from typing import Any

import pytest
from support.judge_server import KEY, ask_judge, last, serving, write_rows

from model.evaluation.asking.predictions import load
from model.evaluation.benchmarks import mm_vet
from model.evaluation.interface import Answer, EvaluationError, Judging, Predictions, Question
from model.evaluation.judging import verdicts

pytestmark = pytest.mark.usefixtures("judge_key")


@pytest.mark.realdata
def test_published_totals_of_three_runs_are_reproduced(realdata):
    folder = realdata / "scorers" / "mm_vet"
    grades = folder / "llava-v1.5-7b_gpt-4-grade-3runs.json"
    scores = mm_vet.score(load(mm_vet.BENCHMARK, grades, folder / "mm-vet.json", folder / "llava-v1.5-7b.json"))
    assert [round(run, 2) for run in scores["runs"]] == [31.24, 30.83, 31.24]
    assert scores["official"] == {"total": 31.1, "runs": [31.2, 30.8, 31.2]} and round(scores["std"], 1) == 0.2
    rounded = {name: round(value, 1) for name, value in scores["capabilities"].items()}
    assert rounded == {"rec": 36.8, "ocr": 21.1, "know": 17.3, "gen": 19.9, "spat": 24.9, "math": 7.7}
    assert round(scores["combinations"]["gen+know+rec"], 1) == 17.8 and len(scores["combinations"]) == 16
    assert scores["judge"]["model"] == "gpt-4" and scores["num_graded"] == scores["num_answered"] == 218
    without_truth = mm_vet.score(load(mm_vet.BENCHMARK, grades))
    assert without_truth["runs"] == scores["runs"] and without_truth["capabilities"] == {}
    answers = mm_vet.score(load(mm_vet.BENCHMARK, folder / "llava-v1.5-7b.json", folder / "mm-vet.json"))
    assert answers["judge"].startswith("none") and "score" not in answers and answers["num_answered"] == 218


def _vet(number: int, capabilities: str) -> Question:
    return Question(f"v{number}", {"question": "x?"}, "1<AND>2", groups={"capabilities": capabilities})


def test_scores_computed_by_hand():
    questions = [_vet(0, "ocr"), _vet(1, "math+ocr"), _vet(2, "rec"), _vet(3, "rec")]
    verdicts = {"v0": [1.0, 0.0], "v1": [0.5, 0.5], "v2": [0.0, 0.2]}
    predictions = Predictions(questions, {}, judging=Judging({"model": "m"}, verdicts, {"v3": "why"}))
    scores = mm_vet.score(predictions)
    assert scores["runs"] == pytest.approx([50, 70 / 3]) and scores["score"] == pytest.approx((50 + 70 / 3) / 2)
    assert scores["capabilities"] == pytest.approx({"ocr": 50, "math": 50, "rec": 10})
    assert scores["combinations"] == pytest.approx({"ocr": 50, "math+ocr": 50, "rec": 10})
    assert scores["unjudged"] == {"count": 1, "reasons": {"v3": "why"}} and scores["num_graded"] == 3
    marks = mm_vet.mark(predictions)
    assert set(marks) == {"v0", "v1", "v2"} and marks["v1"].credit == 0.5 and marks["v1"].read == "0.5"
    assert mm_vet.mark(dataclasses.replace(predictions, judging=None)) == {}


@pytest.mark.parametrize(
    ("reply", "grade"),
    [
        ("0.5", 0.5),
        ("1", 1),
        (" 1.0 \nAll of it is there.", 1),
        ("Grade: 0.3", 0.3),
        ("**0.7**", 0.7),
        (".4", 0.4),
        ("0.", 0),
        ("0.5.", 0.5),
        ("0.55", 0.55),
        ("10", None),
        ("-0.5", None),
        ("1.5", None),
        ("50%", None),
        ("1/2", None),
        ("0.5/1", None),
        ("It is right: 1.0", None),
        ("", None),
    ],
)
def test_grades_are_parsed_from_replies(reply, grade):
    assert mm_vet.parse(reply) == (None if grade is None else [grade])


def test_answers_are_graded_and_ungraded_ones_reported(tmp_path):
    questions = [_vet(i, "ocr") for i in range(4)]
    answers = {"v0": Answer("one and two"), "v1": Answer(""), "v2": Answer("odd {braces}"), "v3": Answer("mute")}

    replies = {
        "one and two": ["<think>Both are\nthere: 1.0?</think>\n\n0.6"],
        "": ["0.0"],
        "odd {braces}": ["That depends.", "0.4"],
        "mute": ["<think>0.9 or 0.1?</think>Hm.", "I cannot tell"],
    }

    def grade(body: dict[str, Any]) -> str:
        answer = body["messages"][1]["content"].rpartition("Answer: ")[2].partition("\n")[0]
        return replies[answer][len(body["messages"]) == 4]

    with serving(grade) as server:
        first = ask_judge(mm_vet.BENCHMARK, Predictions(questions, answers), server, tmp_path)
        scores = mm_vet.score(first)
        asked = len(server.requests)
        assert mm_vet.score(ask_judge(mm_vet.BENCHMARK, Predictions(questions, answers), server, tmp_path)) == scores
        assert len(server.requests) == asked == 6, "two replies without a number cause one more request each"
        assert all(body["max_tokens"] == 16 and body["temperature"] == 0 for body in server.requests)
        assert any("Reference: 1 <AND> 2" in last(body) for body in server.requests)
    assert first.judging.verdicts == {"v0": [0.6], "v1": [0.0], "v2": [0.4]}
    assert scores["unjudged"] == {"count": 1, "reasons": {"v3": "a reply without a verdict: 'I cannot tell'"}}
    assert scores["score"] == pytest.approx(100 / 3) and scores["num_graded"] == 3
    assert scores["empty_answers"] == {"count": 1, "ids": ["v1"]}
    assert scores["judge"]["model"] == "gpt-test" and scores["judge"]["prompt"] == "judge/mm_vet.yaml"
    assert KEY not in json.dumps(scores)


def test_answers_that_exceed_the_budget_are_reported_as_unjudged(tmp_path):
    questions = [_vet(i, "ocr") for i in range(3)]
    predictions = Predictions(questions, {q.id: Answer(q.id) for q in questions})
    with serving(lambda body: "1.0") as server:
        scores = mm_vet.score(ask_judge(mm_vet.BENCHMARK, predictions, server, tmp_path, max_requests=2, concurrency=1))
        assert scores["score"] == 100 and scores["num_graded"] == 2
        assert scores["unjudged"]["reasons"] == {"v2": "not asked: the budget of 2 requests is spent"}
        nothing = mm_vet.score(ask_judge(mm_vet.BENCHMARK, predictions, server, tmp_path / "x", max_requests=0))
        assert "score" not in nothing and nothing["unjudged"]["count"] == 3


def _grades(**changes: Any) -> dict[str, Any]:
    return {"v1_0": {"model": ["m"], "content": ["0.5"], "score": [0.5]}} | changes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            _grades(v1_1={"score": [1.2]}),
            r"p\.json: v1_1: field `score` must be a list of numbers from 0 to 1, one per run, found \[1\.2\]",
        ),
        (_grades(v1_1={"score": []}), r"v1_1: field `score` must be .*found \[\]"),
        (_grades(v1_1="text"), "v1_1: field `score` must be .*found None"),
        (_grades(v1_1={"score": [0.5, 0.5]}), r"1 answers have fewer than 2 grades \(v1_0\)"),
        (_grades(v9_1={"score": [0.5]}), "v9_1 is not among the questions: is it from another version"),
        ({}, "must contain a non-empty JSON object"),
        ([1], "JSON object"),
    ],
)
def test_invalid_grade_files_are_errors(judged_corpus, tmp_path, content, message):
    path = tmp_path / "p.json"
    path.write_text(json.dumps(content))
    with pytest.raises(EvaluationError, match=message):
        load(mm_vet.BENCHMARK, path, judged_corpus / "MM-Vet")


def test_answers_for_another_version_and_damaged_files_are_errors(judged_corpus, tmp_path):
    path = write_rows(tmp_path / "a.json", {"v1_0": "x", "v9_9": "y"})
    with pytest.raises(EvaluationError, match=r"a\.json: v9_9 is not among the questions"):
        load(mm_vet.BENCHMARK, path, judged_corpus / "MM-Vet")
    with pytest.raises(EvaluationError, match=r"require mm-vet\.json"):
        load(mm_vet.BENCHMARK, path)
    path.write_text('{"v1_0": "x", "v1_0": "y"}')
    with pytest.raises(EvaluationError, match=r"a\.json: 1 duplicate keys: v1_0"):
        load(mm_vet.BENCHMARK, path, judged_corpus / "MM-Vet")
    path.write_text('{"v1_0": "x"')
    with pytest.raises(EvaluationError, match=r"a\.json: not a complete JSON file"):
        load(mm_vet.BENCHMARK, path, judged_corpus / "MM-Vet")
    write_rows(path, {"v1_0": None})
    with pytest.raises(EvaluationError, match="v1_0: the answer must be a string, found None"):
        load(mm_vet.BENCHMARK, path, judged_corpus / "MM-Vet")
    row = {"imagename": "a.jpg", "question": "?", "answer": "x", "capability": []}
    with pytest.raises(EvaluationError, match=r"mm-vet\.json: v1_0: field `capability` must be .*found \[\]"):
        mm_vet.read(write_rows(tmp_path / "mm-vet.json", {"v1_0": row}), None)
    with pytest.raises(EvaluationError, match="has no field `imagename`"):
        mm_vet.read(write_rows(tmp_path / "mm-vet.json", {"v1_0": {"question": "?"}}), None)


def test_answers_with_verdicts_in_a_file_are_not_judged_again(judged_corpus, tmp_path):
    grades = write_rows(tmp_path / "g.json", {"v1_0": {"score": [0.5]}, "v1_1": {"model": "m", "score": [0.5]}})
    predictions = load(mm_vet.BENCHMARK, grades, judged_corpus / "MM-Vet")
    with serving(lambda body: "1.0") as server:
        assert ask_judge(mm_vet.BENCHMARK, predictions, server, tmp_path / "cache") is predictions
        assert not server.requests
    assert mm_vet.score(predictions)["judge"] == {"model": "m", "from": "g.json"}
    assert verdicts.add_verdicts(mm_vet.BENCHMARK, predictions, None) is predictions
