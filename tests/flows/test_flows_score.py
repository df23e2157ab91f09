"""`honeybee score` and `honeybee compare` as a person types them."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app

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
    """Our format: three right answers, one of them unclear, and one wrong."""
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


def test_a_file_is_scored_and_what_is_doubtful_named(answers, tmp_path):
    output = honeybee("score", "pope", answers, "--marks", tmp_path / "marks.jsonl")
    assert "accuracy" in output and "75.00" in output
    assert "unclear answers: 2: random/2, random/3" in output
    marks = [json.loads(line) for line in (tmp_path / "marks.jsonl").read_text().splitlines()]
    assert [(mark["read"], mark["credit"]) for mark in marks] == [("no", 1), ("yes", 1), ("yes", 0), ("yes", 1)]
    whole = json.loads(honeybee("score", "pope", answers, "--json"))
    assert whole["pope"]["accuracy"] == 75 and whole["settings"] == {"model": "m"}


def test_wrong_arguments_are_told(answers, tmp_path):
    with pytest.raises(ValueError, match="holds predictions for pope, not for mme"):
        honeybee("score", "mme", answers)
    with pytest.raises(ValueError, match="no benchmark 'poop'; known: "):
        honeybee("score", "poop", answers)
    assert "--judge and --judge-model go together" in honeybee("score", "pope", answers, "--judge", "http://x/v1")
    with pytest.raises(ValueError, match="no run nowhere/1"):
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
