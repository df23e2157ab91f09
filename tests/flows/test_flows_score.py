"""`honeybee score` and `honeybee compare` on what careless people give them."""

from pathlib import Path

import pytest

from flows import cli_score
from flows.compare import read_scores
from flows.runs import RunError
from model.evaluation import EvaluationError


def test_remarks_show_lists_and_take_no_task_for_a_count() -> None:
    scores = {
        "tasks": {"count": {"score": 1.0}, "OCR": {"score": 2.0}},
        "missing_tasks": ["color"],
        "unclear_answers": {"count": 0, "ids": []},
        "other_answers": {"count": 1, "ids": ["a"]},
    }
    assert cli_score.remarks(scores) == ["missing tasks: color", "other answers: 1: a"]


def test_what_would_steer_a_terminal_is_escaped() -> None:
    assert cli_score.printable("é\x1b[2J\ud800") == "é\\x1b[2J\\ud800"


@pytest.mark.parametrize("url", ["foo", "http://me:hunter2@host/v1", "http://host:99999/v1", "http://a b/v1"])
def test_a_bad_judge_is_an_error_that_repeats_no_password(url: str, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"^--judge: ") as error:
        cli_score.score("pope", tmp_path / "a", judge=url, judge_model="m", judge_cache=tmp_path / "cache")
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    "content", [b'{"pope":', b"[]", b'{"pope": 5}', b"\xff", b'{"pope": {"f1": NaN}}', b"[" * 99999]
)
def test_malformed_scores_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "recipe.yaml").write_text("")
    (tmp_path / "scores.json").write_bytes(content)
    with pytest.raises(RunError, match=r"scores\.json"):
        read_scores(str(tmp_path))
