"""`honeybee score` and `honeybee compare` on the command line."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import score as score_command
from flows.cli.main import app
from flows.cli.score import remarks, score
from flows.report import score_tables
from flows.report.score_comparison import columns, read_runs, read_scores
from flows.runs.find import RunError
from model.evaluation.benchmarks import EvaluationError
from model.evaluation.benchmarks.mmmu_parse import matches
from pipelines.core import text_tables

LINES = [
    {"question_id": i, "image": "a.jpg", "text": f"Is there a dog {i}?", "label": "yes" if i % 2 else "no"}
    for i in range(4)
]


def honeybee(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(each) for each in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    """Predictions in Honeybee's format: three correct answers, one of them unclear, and a wrong one."""
    header = {"format": "honeybee predictions 1", "benchmark": "pope", "num_questions": 4, "settings": {"model": "m"}}
    texts = ["No", "Yes", "a dog", "maybe"]
    rows = [
        {
            "id": f"random/{row['question_id']}",
            "answer": text,
            "error": None,
            "truth": row["label"],
            "options": [],
            "fields": {"question": row["text"]},
            "groups": {"split": "random"},
            "images": ["a.jpg"],
        }
        for row, text in zip(LINES, texts, strict=True)
    ]
    path = tmp_path / "pope.predictions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [header, *rows]))
    return path


def test_a_file_is_scored_and_unclear_answers_are_listed(answers, tmp_path):
    output = honeybee("score", "pope", answers, "--marks", tmp_path / "marks.jsonl")
    assert "accuracy" in output and "75.00" in output
    assert "unclear answers: 2 (random/2, random/3)" in output
    marks = [json.loads(line) for line in (tmp_path / "marks.jsonl").read_text().splitlines()]
    assert [(mark["read"], mark["credit"]) for mark in marks] == [("no", 1), ("yes", 1), ("yes", 0), ("yes", 1)]
    output = json.loads(honeybee("score", "pope", answers, "--json"))
    assert output["pope"]["accuracy"] == 75 and output["settings"] == {"model": "m"}


def test_invalid_arguments_are_reported(answers, tmp_path):
    with pytest.raises(ValueError, match="contains predictions for pope, not for mme"):
        honeybee("score", "mme", answers)
    with pytest.raises(ValueError, match="no benchmark 'poop'; known: "):
        honeybee("score", "poop", answers)
    assert "--judge and --judge-model must be given together" in honeybee(
        "score", "pope", answers, "--judge", "http://x/v1"
    )
    with pytest.raises(ValueError, match="there is no run nowhere/1"):
        honeybee("compare", "nowhere/1")


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("benchmark", "predictions", "more", "expected"),
    [
        ("mme", "mme/llava-v1.5-13b.jsonl", {"truth": "mme/ground_truth"}, ["1531.32", "295.36"]),
        ("scienceqa", "scienceqa/llava-v1.5-13b_output.jsonl", {}, ["74.39", "71.64"]),
        ("mmbench", "mmbench/llava-v1.5-13b.xlsx", {}, ["75.43", "67.69"]),
        ("seed_bench", "seed_bench/llava-v1.5-13b.jsonl", {"truth": "seed_bench/truth.jsonl"}, ["68.21"]),
        (
            "mm_vet",
            "mm_vet/llava-v1.5-7b_gpt-4-grade-3runs.json",
            {"truth": "mm_vet/mm-vet.json"},
            ["31.10"],
        ),
        ("llava_bench", "llava_bench/reviews/llava-v1.5-7b-eval3.jsonl", {}, ["66.3"]),
        (
            "mmmu",
            "mmmu/llava1.5_13b/total_val_output.json",
            {"truth": "mmmu/answer_dict_val.json"},
            ["36.67"],
        ),
        (
            "pope",
            "pope/llava-v1.5-13b.jsonl",
            {"truth": "pope/coco_v2023_2910", "questions": "pope/llava_pope_test.jsonl"},
            ["84.46", "86.25", "87.14"],
        ),
    ],
)
def test_published_predictions_give_the_published_numbers(realdata, benchmark, predictions, more, expected):
    folder = realdata / "scorers"
    options = [word for name, place in more.items() for word in (f"--{name}", folder / place)]
    output = honeybee("score", benchmark, folder / predictions, *options)
    assert all(number in output for number in expected), output


def _mme(folder):
    """Writes a ground-truth folder with MME's task `count` and one image, and answers in LLaVA's format."""
    truth = folder / "truth"
    truth.mkdir()
    (truth / "count.txt").write_text("1.jpg\tAre there two?\tYes\n1.jpg\tAre there three?\tNo\n")
    answers = folder / "answers.jsonl"
    rows = [
        {"question_id": "count/1.jpg", "prompt": f"{question}\nAnswer", "text": text}
        for question, text in (("Are there two?", "Yes"), ("Are there three?", "perhaps"))
    ]
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return answers, truth


def test_mmes_task_named_count_is_not_mistaken_for_a_count(tmp_path, capsys):
    answers, truth = _mme(tmp_path)
    score("mme", answers, truth=truth, marks=tmp_path / "marks.jsonl")
    shown = capsys.readouterr().out
    assert "  mme        count  score          50.00\n" in shown
    assert "other answers: 1 (count/1/Are there three?)\n" in shown
    marks = [json.loads(line) for line in (tmp_path / "marks.jsonl").read_text().splitlines()]
    assert [mark["credit"] for mark in marks] == [1.0, 0.0]


def test_without_a_judge_only_the_reason_is_shown(tmp_path, capsys):
    truth = tmp_path / "mm-vet.json"
    row = {"imagename": "a.jpg", "question": "What is it?", "answer": "a cat", "capability": ["rec"], "imagesource": ""}
    truth.write_text(json.dumps({"v1_0": row}))
    answers = tmp_path / "answers.json"
    answers.write_text(json.dumps({"v1_0": "a cat"}))
    score("mm_vet", answers, truth=truth)
    assert capsys.readouterr().out.startswith("1 questions, 1 answered\njudge: none")


def test_problems_are_counted_with_some_of_their_ids():
    many = {"unread_answers": {"count": 7, "ids": list("abcdefg")}, "unclear_answers": {"count": 0, "ids": []}}
    assert remarks(many) == ["unread answers: 7 (a, b, c, d, e, …)"]


def test_mm_vets_capabilities_are_in_the_table():
    entry = {"score": 30.0, "capabilities": {"ocr": 20.0, "rec": 40.0}, "official": {"total": 30.0}}
    rows = [(row["part"], row["measure"], row["score"]) for row in score_tables.scores({"mm_vet": entry})]
    assert rows == [("all", "score", "30.0"), ("ocr", "score", "20.0"), ("rec", "score", "40.0")]


@pytest.mark.realdata
def test_every_capability_of_published_grades_is_shown(realdata, capsys):
    folder = realdata / "scorers/mm_vet"
    score("mm_vet", folder / "llava-v1.5-7b_gpt-4-grade-3runs.json", truth=folder / "mm-vet.json")
    shown = capsys.readouterr().out
    assert all(f"  mm_vet     {name}" in shown for name in ("all", "gen", "know", "math", "ocr", "rec", "spat"))


def test_remarks_show_lists_and_ignore_a_task_named_count() -> None:
    scores = {
        "tasks": {"count": {"score": 1.0}, "OCR": {"score": 2.0}},
        "missing_tasks": ["color"],
        "unclear_answers": {"count": 0, "ids": []},
        "other_answers": {"count": 1, "ids": ["a"]},
    }
    assert score_command.remarks(scores) == ["missing tasks: color", "other answers: 1 (a)"]


def test_runs_given_twice_are_rejected_and_empty_columns_are_omitted(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.yaml").write_text("")
        (tmp_path / name / "scores.json").write_text(json.dumps({"pope": {"f1": 50.0}}))
    with pytest.raises(RunError, match=r"/a: give each run only once"):
        read_runs([str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / "a")])
    runs = read_runs([str(tmp_path / "a"), str(tmp_path / "b")])
    assert {tuple(row) for row in columns(runs)} == {("model", "POPE")}


def test_a_long_reply_of_digits_is_parsed_quickly() -> None:
    assert not matches("1" * 300_000, ["2"])  # a regression test: this once took minutes


def test_terminal_control_characters_are_escaped() -> None:
    assert text_tables.printable("é\x1b[2J\ud800") == "é\\x1b[2J\\ud800"


@pytest.mark.parametrize("url", ["foo", "http://me:hunter2@host/v1", "http://host:99999/v1", "http://a b/v1"])
def test_the_error_for_an_invalid_judge_url_does_not_contain_the_password(url: str, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"^--judge: ") as error:
        score_command.score("pope", tmp_path / "a", judge=url, judge_model="m", judge_cache=tmp_path / "cache")
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    "content", [b'{"pope":', b"[]", b'{"pope": 5}', b"\xff", b'{"pope": {"f1": NaN}}', b"[" * 99999]
)
def test_malformed_scores_are_reported(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "recipe.yaml").write_text("")
    (tmp_path / "scores.json").write_bytes(content)
    with pytest.raises(RunError, match=r"scores\.json"):
        read_scores(str(tmp_path))
