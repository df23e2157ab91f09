"""The progress bar of a stage follows the metrics, and an unreachable server does not fail the run."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from flows.tasks import progress


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


def test_the_last_complete_line_is_read(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    assert progress.last_line(metrics) is None
    write(metrics, 1, end="")
    assert progress.last_line(metrics) is None
    with metrics.open("a") as file:
        file.write("\n" + "".join(f"{json.dumps({'step': i})}\n" for i in range(9000)))
    assert progress.last_line(metrics) == {"step": 8999}


@pytest.mark.slow
def test_the_progress_bar_is_updated(prefect: None, tmp_path: Path) -> None:
    metrics, logged = tmp_path / "metrics.jsonl", []
    with progress.shown("Bar", "pretrain", metrics, logged.append, every=0.05):
        while not metrics.exists():
            write(metrics, 10)
        found = wait_for("bar-pretrain-progress", 25.0)
        assert found.description == "pretrain: step 10 of 40, loss 2.0000, 0:01:01 left"
        write(metrics, 20, end="")  # an incomplete line is not read
    assert bar("bar-pretrain-progress").data == 25.0
    with metrics.open("a") as file:
        file.write("\n")
    write(metrics, 40)
    with progress.shown("Other", "pretrain", metrics, logged.append, every=60):
        pass  # the final state is shown even without an update in between
    assert bar("other-pretrain-progress").data == 100.0
    assert logged == []


@pytest.mark.slow
def test_an_unreachable_server_is_logged_once(prefect: None, tmp_path: Path) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    metrics, logged = tmp_path / "metrics.jsonl", []
    write(metrics, 4)
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):  # nothing listens at port 9
        follower = progress._Follower("away-progress", "finetune", metrics, logged.append)
        follower.look()
        follower.look()
    (line,) = logged
    assert line.startswith("cannot update the progress bar of finetune: ")
    follower.look()  # the server is reachable again
    assert bar("away-progress").data == 10.0
    assert len(logged) == 1
