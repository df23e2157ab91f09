"""`honeybee score` on small files of answers: what a user of the command sees."""

import json

import pytest

from flows import tables
from flows.cli_score import remarks, score


def _mme(folder):
    """A ground-truth folder of MME's task `count`, one picture, and answers in LLaVA's layout."""
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


def test_mmes_task_named_count_is_no_count_of_faults(tmp_path, capsys):
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
    assert capsys.readouterr().out.startswith("judge: none")


def test_faults_are_counted_with_some_of_their_ids():
    many = {"unread_answers": {"count": 7, "ids": list("abcdefg")}, "unclear_answers": {"count": 0, "ids": []}}
    assert remarks(many) == ["unread answers: 7 (a, b, c, d, e, …)"]


def test_mm_vets_capabilities_are_in_the_table():
    entry = {"score": 30.0, "capabilities": {"ocr": 20.0, "rec": 40.0}, "official": {"total": 30.0}}
    rows = [(row["part"], row["measure"], row["score"]) for row in tables.scores({"mm_vet": entry})]
    assert rows == [("all", "score", "30.0"), ("ocr", "score", "20.0"), ("rec", "score", "40.0")]


@pytest.mark.realdata
def test_every_capability_of_published_grades_is_shown(realdata, capsys):
    folder = realdata / "scorers/mm_vet"
    score("mm_vet", folder / "llava-v1.5-7b_gpt-4-grade-3runs.json", truth=folder / "mm-vet.json")
    shown = capsys.readouterr().out
    assert all(f"  mm_vet     {name}" in shown for name in ("all", "gen", "know", "math", "ocr", "rec", "spat"))
