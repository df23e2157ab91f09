"""A stage in separate processes, as a flow runs it: it saves a checkpoint if cancelled, and resumes when run again."""

import json
from pathlib import Path

import pytest
from support.training_data import rows, write_shards
from support.training_jobs import make_job
from support.training_ranks import curve
from transformers import AutoTokenizer

from flows.launch.launch import launch
from flows.launch.nodes import LaunchError

pytestmark = pytest.mark.slow


class Cancelled(BaseException):
    pass


def test_cancelled_stage_resumes_when_launched_again(tiny_backbones: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbones / "llm")
    shards = write_shards(tmp_path / "shards", rows(tokenizer, 120 * 4), tiny_backbones / "llm", 3)
    job = make_job(tiny_backbones, shards, tmp_path, steps=120, global_batch=4, micro_batch=2)
    path = tmp_path / "job.json"
    path.write_text(json.dumps(job))

    def cancel(line: str) -> None:
        if line.startswith("step 5/"):
            raise Cancelled

    with pytest.raises(Cancelled):
        launch("model.training", path, ranks=2, threads=1, log=cancel)
    (checkpoint,) = (tmp_path / "work" / "checkpoints").iterdir()
    saved = json.loads((checkpoint / "manifest.json").read_text())["step"]
    assert 5 <= saved < 120

    lines: list[str] = []
    launch("model.training", path, ranks=2, threads=1, log=lines.append)
    assert f"resumed after step {saved}" in lines
    assert "projector: 1,056 of 1,056 parameters are trainable" in lines
    assert [line["step"] for line in curve(job)] == list(range(1, 121))
    assert (tmp_path / "output" / "manifest.json").is_file()


def test_job_error_becomes_the_launch_error(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    path.write_text("{}")
    with pytest.raises(LaunchError, match=r"job\.json: stage: Field required"):
        launch("model.training", path, log=lambda line: None)
