"""The progress bar of a stage: it follows the metrics, and a server that is away fails nothing."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from flows import progress


def write(metrics: Path, step: int, end: str = "\n") -> None:
    line = {"step": step, "steps": 40, "loss": 2.0, "seconds_left": 61.2, "time": 0}
    with metrics.open("a") as file:
        file.write(json.dumps(line) + end)


def bar(key: str) -> Any:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        found = [artifact for artifact in client.read_artifacts() if artifact.key == key]
    assert len(found) <= 1
    return found[0] if found else None


def wait_for(key: str, data: float) -> Any:
    deadline = time.monotonic() + 20
    while (found := bar(key)) is None or found.data != data:
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    return found


def test_the_last_whole_line(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    assert progress.last_line(metrics) is None
    write(metrics, 1, end="")
    assert progress.last_line(metrics) is None
    with metrics.open("a") as file:
        file.write("\n" + "".join(f"{json.dumps({'step': i})}\n" for i in range(9000)))
    assert progress.last_line(metrics) == {"step": 8999}


@pytest.mark.slow
def test_one_bar_that_moves(prefect: None, tmp_path: Path) -> None:
    metrics, said = tmp_path / "metrics.jsonl", []
    with progress.shown("Bar", "pretrain", metrics, said.append, every=0.05):
        while not metrics.exists():
            write(metrics, 10)
        found = wait_for("bar-pretrain-progress", 25.0)
        assert found.description == "pretrain: step 10 of 40, loss 2.0000, 0:01:01 left"
        write(metrics, 20, end="")  # half a line is not read
    assert bar("bar-pretrain-progress").data == 25.0
    with metrics.open("a") as file:
        file.write("\n")
    write(metrics, 40)
    with progress.shown("Other", "pretrain", metrics, said.append, every=60):
        pass  # what comes last is shown though nobody looked in between
    assert bar("other-pretrain-progress").data == 100.0
    assert said == []


@pytest.mark.slow
def test_a_server_that_is_away_is_said_once(prefect: None, tmp_path: Path) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    metrics, said = tmp_path / "metrics.jsonl", []
    write(metrics, 4)
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):  # nobody answers there
        follower = progress._Follower("away-progress", "finetune", metrics, said.append)
        follower.look()
        follower.look()
    (line,) = said
    assert line.startswith("the progress of finetune is not shown for the moment: ")
    follower.look()  # it is back
    assert bar("away-progress").data == 10.0
    assert len(said) == 1
