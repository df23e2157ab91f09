"""The processes of a job: their output is passed on, their errors are raised, and none outlives the job."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from support.launched import Lines, gone, write_rank

from flows.launch.launch import launch
from flows.launch.nodes import LaunchError


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return write_rank(tmp_path)


@pytest.fixture
def job(tmp_path: Path) -> Path:
    return tmp_path / "job.json"


@pytest.mark.parametrize("ranks", [1, 2])
def test_lines_and_settings_are_passed_on(job: Path, env: dict[str, str], ranks: int) -> None:
    job.write_text("finish")
    lines = Lines()
    launch("launched_rank", job, ranks, threads=3, log=lines, env=env | {"EXTRA": "more"})
    assert lines.count("grüße more") == ranks
    assert len(lines.pids) == ranks
    assert all(line.endswith("threads 3") for line in lines if line.startswith("pid"))
    assert gone(lines.pids)


@pytest.mark.parametrize(
    ("ranks", "what", "message"),
    [
        (1, "fail", "rank 0 failed.*ValueError: the sky is green"),
        (2, "fail last", "rank 1 failed.*ValueError: rank one is unwell"),
        (1, "die", "rank 0 was killed by SIGKILL"),
        (2, "die", "rank 1 was killed by SIGKILL"),
    ],
)
def test_a_failed_rank_fails_the_launch_with_its_error(
    job: Path, env: dict[str, str], ranks: int, what: str, message: str
) -> None:
    job.write_text(what)
    lines = Lines()
    start = time.monotonic()
    with pytest.raises(LaunchError, match=f"(?s){message}"):
        launch("launched_rank", job, ranks, log=lines, env=env, grace=5)
    assert time.monotonic() - start < 60
    assert gone(lines.pids)


def test_an_import_error_is_reported(job: Path, env: dict[str, str]) -> None:
    with pytest.raises(LaunchError, match="No module named"):
        launch("no_such_module", job, log=Lines(), env=env)


class Cancelled(BaseException):
    """Stands for Prefect's TerminationSignal, which is not an Exception either."""


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_exception_in_the_launcher_lets_the_ranks_save_and_ends_them(
    job: Path, env: dict[str, str], ranks: int
) -> None:
    job.write_text("save")
    lines = Lines(Cancelled(), ranks)
    with pytest.raises(Cancelled):
        launch("launched_rank", job, ranks, log=lines, env=env)
    assert {line for line in lines if line.endswith("saves")} == {f"rank {rank} saves" for rank in range(ranks)}
    assert gone(lines.pids)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_rank_that_ignores_sigterm_is_killed(job: Path, env: dict[str, str], ranks: int) -> None:
    job.write_text("stubborn")
    lines = Lines(KeyboardInterrupt(), ranks)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        launch("launched_rank", job, ranks, log=lines, env=env, grace=1)
    assert time.monotonic() - start < 60
    assert gone(lines.pids, within=2)


@pytest.mark.parametrize("ranks", [1, 2])
def test_no_rank_outlives_a_killed_launcher(job: Path, env: dict[str, str], ranks: int) -> None:
    job.write_text("held")
    code = "import sys, flows.launch.launch as it; it.launch('launched_rank', sys.argv[1], int(sys.argv[2]))"
    launcher = subprocess.Popen(
        [sys.executable, "-uc", code, str(job), str(ranks)],
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert launcher.stdout is not None
    lines = Lines()
    while lines.count("ready") < ranks:
        lines(launcher.stdout.readline().strip().removeprefix("[rank 1] "))
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    launcher.stdout.close()
    assert gone(lines.pids, within=30)


def test_launch_works_in_a_thread(job: Path, env: dict[str, str]) -> None:
    job.write_text("finish")
    lines = Lines()
    thread = threading.Thread(target=launch, args=("launched_rank", job), kwargs={"log": lines, "env": env})
    thread.start()
    thread.join(60)
    assert "grüße None" in lines


def test_a_port_in_use_is_reported_before_any_rank_starts(job: Path, env: dict[str, str]) -> None:
    job.write_text("finish")
    lines = Lines()
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(LaunchError, match=rf"rendezvous port {port} .*launch\.rendezvous\.port"):
            launch("launched_rank", job, 2, log=lines, env=env, port=port)
    assert lines == []
    launch("launched_rank", job, 2, log=lines, env=env, port=port)
    assert len(lines.pids) == 2
