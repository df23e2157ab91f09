"""MM-Vet, LLaVA-Bench and MMBench's matcher: official files, published numbers, verdicts of a judge."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from judge_server import KEY, JudgeServer, serving

from model import evaluation
from model.evaluation import judging, llava_bench, mm_vet, mmbench
from model.evaluation.base import Answer, Benchmark, EvaluationError, Judging, Predictions, Question
from model.evaluation.judge import EndpointJudge, JudgeSettings
from model.evaluation.judging import load_judge_prompt
from model.evaluation.predictions import load
from pipelines.sample import write_sample
from pipelines.templates import TemplateError


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sample")
    write_sample(directory, scenes=8, held_out=64, seed=0)
    return directory


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("model.evaluation.judge_http.FIRST_WAIT", 0.01)
    monkeypatch.setenv("HONEYBEE_JUDGE_KEY", KEY)


def ask_judge(benchmark: Benchmark, predictions: Predictions, server: JudgeServer, cache: Path, **settings: Any) -> Any:
    judge = EndpointJudge(JudgeSettings(url=server.url, model="gpt-test", **settings), cache)
    return judging.judged(benchmark, predictions, judge)


def last(body: dict[str, Any]) -> str:
    return body["messages"][-1]["content"]


def write(path: Path, content: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in content) if isinstance(content, list) else
                    json.dumps(content))  # fmt: skip
    return path


# Published numbers


@pytest.mark.realdata
def test_mm_vet_gives_the_published_totals_of_three_runs(realdata):
    folder = realdata / "scorers" / "mm_vet"
    grades = folder / "llava-v1.5-7b_gpt-4-grade-3runs.json"
    scores = mm_vet.score(load(mm_vet.BENCHMARK, grades, folder / "mm-vet.json", folder / "llava-v1.5-7b.json"))
    assert [round(run, 2) for run in scores["runs"]] == [31.24, 30.83, 31.24]
    assert scores["official"] == {"total": 31.1, "runs": [31.2, 30.8, 31.2]} and round(scores["std"], 1) == 0.2
    rounded = {name: round(value, 1) for name, value in scores["capabilities"].items()}
    assert rounded == {"rec": 36.8, "ocr": 21.1, "know": 17.3, "gen": 19.9, "spat": 24.9, "math": 7.7}
    assert round(scores["combinations"]["gen+know+rec"], 1) == 17.8 and len(scores["combinations"]) == 16
    assert scores["judge"]["model"] == "gpt-4" and scores["num_graded"] == scores["num_answered"] == 218
    alone = mm_vet.score(load(mm_vet.BENCHMARK, grades))
    assert alone["runs"] == scores["runs"] and alone["capabilities"] == {}
    answers = mm_vet.score(load(mm_vet.BENCHMARK, folder / "llava-v1.5-7b.json", folder / "mm-vet.json"))
    assert answers["judge"].startswith("none") and "score" not in answers and answers["num_answered"] == 218


@pytest.mark.realdata
def test_llava_bench_gives_the_published_scores(realdata):
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


# MM-Vet by hand


def _vet(number: int, capabilities: str) -> Question:
    return Question(f"v{number}", {"question": "x?"}, "1<AND>2", groups={"capabilities": capabilities})


def test_mm_vet_sub_scores_by_hand():
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
def test_grades_are_read(reply, grade):
    assert mm_vet.parse(reply) == (None if grade is None else [grade])


def test_mm_vet_answers_are_graded_and_what_is_not_is_named(tmp_path):
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
        assert len(server.requests) == asked == 6, "two replies without a number are asked about once more"
        assert all(body["max_tokens"] == 16 and body["temperature"] == 0 for body in server.requests)
        assert any("Reference: 1 <AND> 2" in last(body) for body in server.requests)
    assert first.judging.verdicts == {"v0": [0.6], "v1": [0.0], "v2": [0.4]}
    assert scores["unjudged"] == {"count": 1, "reasons": {"v3": "a reply without a verdict: 'I cannot tell'"}}
    assert scores["score"] == pytest.approx(100 / 3) and scores["num_graded"] == 3
    assert scores["empty_answers"] == {"count": 1, "ids": ["v1"]}
    assert scores["judge"]["model"] == "gpt-test" and scores["judge"]["prompt"] == "judge/mm_vet.yaml"
    assert KEY not in json.dumps(scores)


def test_a_spent_budget_leaves_answers_unjudged_and_says_so(tmp_path):
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
        (_grades(v1_1={"score": [1.2]}), r"p\.json: v1_1: score is \[1\.2\], must be a list of numbers from 0 to 1"),
        (_grades(v1_1={"score": []}), "v1_1: score is"),
        (_grades(v1_1="text"), "v1_1: score is None"),
        (_grades(v1_1={"score": [0.5, 0.5]}), r"1 answers have fewer than 2 grades \(v1_0\)"),
        (_grades(v9_1={"score": [0.5]}), "v9_1 is none of the questions: of another version"),
        ({}, "an object that is not empty|JSON object that is not empty"),
        ([1], "JSON object"),
    ],
)
def test_bad_grade_files_are_errors(corpus, tmp_path, content, message):
    path = tmp_path / "p.json"
    path.write_text(json.dumps(content))
    with pytest.raises(EvaluationError, match=message):
        load(mm_vet.BENCHMARK, path, corpus / "MM-Vet")


def test_mm_vet_answers_of_another_version_and_broken_files(corpus, tmp_path):
    path = write(tmp_path / "a.json", {"v1_0": "x", "v9_9": "y"})
    with pytest.raises(EvaluationError, match=r"a\.json: v9_9 is none of the questions"):
        load(mm_vet.BENCHMARK, path, corpus / "MM-Vet")
    with pytest.raises(EvaluationError, match=r"need mm-vet\.json"):
        load(mm_vet.BENCHMARK, path)
    path.write_text('{"v1_0": "x", "v1_0": "y"}')
    with pytest.raises(EvaluationError, match=r"a\.json: 1 keys stand twice: v1_0"):
        load(mm_vet.BENCHMARK, path, corpus / "MM-Vet")
    path.write_text('{"v1_0": "x"')
    with pytest.raises(EvaluationError, match=r"a\.json: not a whole JSON file"):
        load(mm_vet.BENCHMARK, path, corpus / "MM-Vet")
    write(path, {"v1_0": None})
    with pytest.raises(EvaluationError, match="v1_0: the answer is None, must be a text"):
        load(mm_vet.BENCHMARK, path, corpus / "MM-Vet")
    row = {"imagename": "a.jpg", "question": "?", "answer": "x", "capability": []}
    with pytest.raises(EvaluationError, match=r"mm-vet\.json: v1_0: capability is \[\]"):
        mm_vet.read(write(tmp_path / "mm-vet.json", {"v1_0": row}), None)
    with pytest.raises(EvaluationError, match="has no field 'imagename'"):
        mm_vet.read(write(tmp_path / "mm-vet.json", {"v1_0": {"question": "?"}}), None)


def test_verdicts_of_a_file_are_not_asked_for_again(corpus, tmp_path):
    grades = write(tmp_path / "g.json", {"v1_0": {"score": [0.5]}, "v1_1": {"model": "m", "score": [0.5]}})
    predictions = load(mm_vet.BENCHMARK, grades, corpus / "MM-Vet")
    with serving(lambda body: "1.0") as server:
        assert ask_judge(mm_vet.BENCHMARK, predictions, server, tmp_path / "kept") is predictions
        assert not server.requests
    assert mm_vet.score(predictions)["judge"] == {"model": "m", "from": "g.json"}
    assert judging.judged(mm_vet.BENCHMARK, predictions, None) is predictions


# LLaVA-Bench by hand


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
def test_ratings_are_read_from_the_first_line(reply, pair):
    assert llava_bench.parse(reply) == pair


def test_llava_bench_is_judged_by_category(corpus, tmp_path):
    questions = llava_bench.read(corpus / "LLaVA-Bench", corpus / "LLaVA-Bench" / "images")
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


def test_bad_reviews_are_named(corpus, tmp_path):
    row = {"question_id": 0, "category": "llava_bench_conv", "tuple": [8, 4]}
    path = write(tmp_path / "r.jsonl", [row, row | {"question_id": 1, "tuple": [-1, -1]}])
    scores = llava_bench.score(load(llava_bench.BENCHMARK, path, corpus / "LLaVA-Bench"))
    assert scores["score"] == 50 and scores["num_judged"] == 1
    assert scores["unjudged"]["reasons"]["1"] == "its review gives [-1, -1], not two numbers from 1 to 10"
    assert scores["unjudged"]["reasons"]["2"] == "not in the file"
    for rows, message in [
        ([row, row], r"r\.jsonl:2: question_id 0 stands twice"),
        ([row | {"question_id": 999}], r"r\.jsonl:1: question_id 999 is none of the questions"),
        ([row | {"tuple": [8]}], r"tuple is \[8\], must be two numbers"),
    ]:
        with pytest.raises(EvaluationError, match=message):
            load(llava_bench.BENCHMARK, write(path, rows), corpus / "LLaVA-Bench")
    answers = write(tmp_path / "a.jsonl", [{"question_id": 0, "text": "x"}] * 2)
    with pytest.raises(EvaluationError, match=r"a\.jsonl:2: question_id 0 stands twice"):
        load(llava_bench.BENCHMARK, answers, corpus / "LLaVA-Bench")
    with pytest.raises(EvaluationError, match="need the official folder"):
        load(llava_bench.BENCHMARK, answers)


def test_llava_bench_files_must_agree(tmp_path):
    question = {"question_id": 0, "image": "a.jpg", "text": "?", "category": "conv"}
    write(tmp_path / "questions.jsonl", [question])
    write(tmp_path / "context.jsonl", [{"image": "b.jpg", "caption": "x"}])
    write(tmp_path / "answers_gpt4.jsonl", [{"question_id": 0, "text": "x"}])
    with pytest.raises(EvaluationError, match=r"questions\.jsonl:1: image a\.jpg has no caption in .*context\.jsonl"):
        llava_bench.read(tmp_path, None)
    write(tmp_path / "context.jsonl", [{"image": "a.jpg", "caption": "x"}])
    write(tmp_path / "answers_gpt4.jsonl", [{"question_id": 1, "text": "x"}])
    with pytest.raises(EvaluationError, match=r"question_id 0 has no answer in .*answers_gpt4\.jsonl"):
        llava_bench.read(tmp_path, None)
    with pytest.raises(EvaluationError, match="must be the folder of"):
        llava_bench.read(tmp_path / "questions.jsonl", None)


# MMBench's matcher


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("B", "B"),
        ("b.", "B"),
        ("Letter: C", "C"),
        ("B. a dog", "B"),
        ("(A)", "A"),
        ("NONE", "NONE"),
        ("None of them fits.", None),
        ("none", "NONE"),
        ("D", None),
        ("A dog", None),
        ("The answer is B", None),
        ("", None),
    ],
)
def test_letters_are_read(reply, verdict):
    assert mmbench.parse(reply, 3) == verdict


def test_the_matcher_is_asked_only_of_what_the_rule_does_not_match(tmp_path):
    questions = [Question(str(i), {"question": "?"}, "A", ("red", "blue")) for i in range(1, 6)]
    texts = ["A", "crimson", "no idea", "", "navy"]
    predictions = Predictions(questions, {q.id: Answer(t) for q, t in zip(questions, texts, strict=True)})
    alone = mmbench.score(predictions)
    assert alone["accuracy"] == 20 and alone["matched"] == {"rule": 1, "judge": 0, "neither": 4}
    assert alone["judge"].startswith("none")
    means = {"crimson": "A", "no idea": "NONE", "navy": "B"}
    with serving(lambda body: means[last(body).rpartition("Answer: ")[2].partition("\n")[0]]) as server:
        predictions = ask_judge(mmbench.BENCHMARK, predictions, server, tmp_path)
        assert len(server.requests) == 3
    scores = mmbench.score(predictions)
    assert scores["accuracy"] == 40 and scores["matched"] == {"rule": 1, "judge": 2, "neither": 2}
    assert scores["unmatched_answers"] == {"count": 2, "ids": ["3", "4"]}
    assert {key: mark.read for key, mark in mmbench.mark(predictions).items()} == {
        "1": "A", "2": "A", "3": None, "4": None, "5": "B",
    }  # fmt: skip


# All


@pytest.mark.parametrize("name", ["mm_vet", "llava_bench", "mmbench"])
def test_judge_prompts_name_only_what_they_get(name):
    fields = {
        "mm_vet": ("question", "truth", "answer"),
        "llava_bench": ("caption", "question", "reference", "answer"),
        "mmbench": ("question", "options", "answer"),
    }[name]
    system, user = load_judge_prompt(name).render({field: f"<{field}>" for field in fields})
    assert system["role"] == "system" and all(user["content"].count(f"<{field}>") == 1 for field in fields)
    with pytest.raises(TemplateError, match="it may name question"):
        load_judge_prompt(name).render({"question": "x"})


@pytest.mark.parametrize("name", ["mm_vet", "llava_bench", "mmmu", "owleval"])
def test_the_sample_is_read_with_its_images(corpus, name):
    folder = {"mm_vet": "MM-Vet", "llava_bench": "LLaVA-Bench", "mmmu": "MMMU", "owleval": "OwlEval"}[name]
    images = {"mmmu": "", "owleval": "cases"}.get(name, "images")
    questions = evaluation.get(name).read(corpus / folder, corpus / folder / images)
    assert len(questions) > 20
    assert all(image.read()[:2] == b"\xff\xd8" for question in questions for image in question.images)
    assert all(question.images and question.fields["question"] for question in questions)
