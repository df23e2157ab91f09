"""LLaVA-Bench: the official files, the published scores and the ratings of a judge."""

import pytest
from support.judge_server import ask_judge, last, serving, write_rows

from model.evaluation.asking.predictions import load
from model.evaluation.benchmarks import llava_bench
from model.evaluation.interface import Answer, EvaluationError, Predictions

pytestmark = pytest.mark.usefixtures("judge_key")


@pytest.mark.realdata
def test_published_scores_are_reproduced(realdata):
    folder = realdata / "scorers" / "llava_bench"
    official = []
    for number in (1, 2, 3):
        reviews = folder / "reviews" / f"llava-v1.5-7b-eval{number}.jsonl"
        scores = llava_bench.score(load(llava_bench.BENCHMARK, reviews, folder))
        assert scores == llava_bench.score(load(llava_bench.BENCHMARK, reviews))
        assert scores["num_judged"] == 60 and "unjudged" not in scores
        official.append(scores["official"])
    assert [scores["all"] for scores in official] == [64.8, 65.3, 66.3]
    assert official[0] == {"all": 64.8, "conv": 59.3, "detail": 47.7, "complex": 77.6}


@pytest.mark.realdata
def test_published_answers_are_judged(realdata, tmp_path):
    folder = realdata / "scorers" / "llava_bench"
    answers = load(llava_bench.BENCHMARK, folder / "answers_llava-v1.5-7b.jsonl", folder)
    assert llava_bench.score(answers)["judge"].startswith("none")
    with serving(lambda body: "8 6\nThe first is better.") as server:
        scores = llava_bench.score(ask_judge(llava_bench.BENCHMARK, answers, server, tmp_path))
        assert scores["score"] == pytest.approx(75) and scores["num_judged"] == 60
        asked = next(last(body) for body in server.requests if "famous sight" in last(body))
    assert "An aerial view of Diamond Head" in asked
    assert asked.index("The famous sight in the photo is Diamond Head.") < asked.index("a volcanic crater")


@pytest.mark.parametrize(
    ("reply", "pair"),
    [
        ("8 6\nThe first …", (8, 6)),
        ("8.5 7", (8.5, 7)),
        ("9, 10", (9, 10)),
        ("8/10 6/10", (8, 6)),
        ("8\n6", None),
        ("0 5", None),
        ("11 5", None),
        ("8 6 7", None),
        ("Assistant 1: 8", None),
        ("", None),
    ],
)
def test_ratings_are_parsed_from_the_first_line(reply, pair):
    assert llava_bench.parse(reply) == pair


def test_scores_by_category(judged_corpus, tmp_path):
    questions = llava_bench.read(judged_corpus / "LLaVA-Bench", judged_corpus / "LLaVA-Bench" / "images")
    assert all(question.images[0].read()[:2] == b"\xff\xd8" for question in questions)
    answers = {question.id: Answer(question.truth) for question in questions}
    detail = [question.id for question in questions if question.groups["category"] == "detail"]
    answers[detail[0]] = Answer("")
    with serving(lambda body: "8 4" if "Describe the picture" in last(body) else "10 10") as server:
        predictions = ask_judge(llava_bench.BENCHMARK, Predictions(questions, answers), server, tmp_path)
    scores = llava_bench.score(predictions)
    assert {name: values["score"] for name, values in scores["categories"].items()} == {
        "conv": 100, "detail": 50, "complex": 100,
    }  # fmt: skip
    third = len(questions) // 3
    assert scores["score"] == pytest.approx(100 * (4 + 20) / (8 + 20)) and scores["num_judged"] == 3 * third
    assert scores["reference_mean"] == pytest.approx(10 * 28 / 3)
    assert scores["empty_answers"] == {"count": 1, "ids": detail[:1]}
    marks = llava_bench.mark(predictions)
    assert marks[detail[0]].read == "8 4" and marks[detail[0]].credit == 0.4


def test_unparsed_reviews_are_reported_and_invalid_files_refused(judged_corpus, tmp_path):
    row = {"question_id": 0, "category": "llava_bench_conv", "tuple": [8, 4]}
    path = write_rows(tmp_path / "r.jsonl", [row, row | {"question_id": 1, "tuple": [-1, -1]}])
    scores = llava_bench.score(load(llava_bench.BENCHMARK, path, judged_corpus / "LLaVA-Bench"))
    assert scores["score"] == 50 and scores["num_judged"] == 1
    assert scores["unjudged"]["reasons"]["1"] == "its review gives [-1, -1], not two numbers from 1 to 10"
    assert scores["unjudged"]["reasons"]["2"] == "not in the file"
    for rows, message in [
        ([row, row], r"r\.jsonl:2: duplicate question_id 0"),
        ([row | {"question_id": 999}], r"r\.jsonl:1: question_id 999 is not among the questions"),
        ([row | {"tuple": [8]}], r"field `tuple` must be a list of two numbers, found \[8\]"),
    ]:
        with pytest.raises(EvaluationError, match=message):
            load(llava_bench.BENCHMARK, write_rows(path, rows), judged_corpus / "LLaVA-Bench")
    answers = write_rows(tmp_path / "a.jsonl", [{"question_id": 0, "text": "x"}] * 2)
    with pytest.raises(EvaluationError, match=r"a\.jsonl:2: duplicate question_id 0"):
        load(llava_bench.BENCHMARK, answers, judged_corpus / "LLaVA-Bench")
    with pytest.raises(EvaluationError, match="require the official folder"):
        load(llava_bench.BENCHMARK, answers)


def test_official_files_must_be_consistent(tmp_path):
    question = {"question_id": 0, "image": "a.jpg", "text": "?", "category": "conv"}
    write_rows(tmp_path / "questions.jsonl", [question])
    write_rows(tmp_path / "context.jsonl", [{"image": "b.jpg", "caption": "x"}])
    write_rows(tmp_path / "answers_gpt4.jsonl", [{"question_id": 0, "text": "x"}])
    with pytest.raises(EvaluationError, match=r"questions\.jsonl:1: image a\.jpg has no caption in .*context\.jsonl"):
        llava_bench.read(tmp_path, None)
    write_rows(tmp_path / "context.jsonl", [{"image": "a.jpg", "caption": "x"}])
    write_rows(tmp_path / "answers_gpt4.jsonl", [{"question_id": 1, "text": "x"}])
    with pytest.raises(EvaluationError, match=r"question_id 0 has no answer in .*answers_gpt4\.jsonl"):
        llava_bench.read(tmp_path, None)
    with pytest.raises(EvaluationError, match="must be the folder of"):
        llava_bench.read(tmp_path / "questions.jsonl", None)
