"""Processes of a job: their lines are passed on, their own error is raised, and none is left behind."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from flows.launch import LaunchError, launch

ROOT = Path(__file__).resolve().parents[2]

# What each rank does, by the name in the job file. It prints its process id first.
RANK = """
import importlib.util, os, signal, sys, time
from pathlib import Path
RANK = int(os.environ.get("RANK", "0"))

def save(number, frame):
    print(f"rank {RANK} saves", flush=True)
    sys.exit(143)

def main():
    print(f"pid {os.getpid()} rank {RANK} threads {os.environ['OMP_NUM_THREADS']}", flush=True)
    what = Path(sys.argv[1]).read_text()
    if what == "finish":
        print("grüße", os.environ.get("EXTRA"))
    if what == "fail" and RANK == 0:
        raise ValueError("the sky is green")
    if what == "fail last":
        if RANK == 1:
            time.sleep(0.5)
            raise ValueError("rank one is unwell")
        time.sleep(600)
    if what == "die" and RANK == int(os.environ.get("WORLD_SIZE", "1")) - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if what in ("save", "die"):
        signal.signal(signal.SIGTERM, save)
        print("ready", flush=True)
        time.sleep(600)
    if what == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("ready", flush=True)
        time.sleep(600)
    if what == "held":
        spec = importlib.util.spec_from_file_location("lifeline", os.environ["LIFELINE"])  # without all of model
        lifeline = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(lifeline)
        lifeline.hold()
        signal.signal(signal.SIGTERM, save)
        print("ready", flush=True)
        time.sleep(600)

main()
"""


class Lines(list):
    """Collects lines; raises an error when so many ranks have said `ready`."""

    def __init__(self, error: BaseException | None = None, ranks: int = 1):
        super().__init__()
        self.error, self.ranks = error, ranks

    def __call__(self, line: str) -> None:
        self.append(line.removeprefix("[rank 1] "))
        if self.count("ready") == self.ranks and self.error is not None:
            error, self.error = self.error, None
            raise error

    @property
    def pids(self) -> list[int]:
        return [int(line.split()[1]) for line in self if line.startswith("pid ")]


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "launched_rank.py").write_text(textwrap.dedent(RANK))
    lifeline = ROOT / "model" / "training" / "lifeline.py"
    return {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "LIFELINE": str(lifeline)}


@pytest.fixture
def job(tmp_path: Path) -> Path:
    return tmp_path / "job.json"


def gone(pids: list[int], within: float = 0.0) -> bool:
    deadline = time.monotonic() + within
    while True:
        alive = []
        for pid in pids:
            stat = Path(f"/proc/{pid}/stat")
            if stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
                alive.append(pid)
        if not alive:
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)


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
def test_a_failed_rank_fails_the_launch_with_its_own_error(
    job: Path, env: dict[str, str], ranks: int, what: str, message: str
) -> None:
    job.write_text(what)
    lines = Lines()
    begun = time.monotonic()
    with pytest.raises(LaunchError, match=f"(?s){message}"):
        launch("launched_rank", job, ranks, log=lines, env=env, grace=5)
    assert time.monotonic() - begun < 60
    assert gone(lines.pids)


def test_a_module_that_cannot_be_imported(job: Path, env: dict[str, str]) -> None:
    with pytest.raises(LaunchError, match="No module named"):
        launch("no_such_module", job, log=Lines(), env=env)


class Cancelled(BaseException):
    """As Prefect's TerminationSignal is."""


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_exception_here_lets_the_ranks_save_and_ends_them(job: Path, env: dict[str, str], ranks: int) -> None:
    job.write_text("save")
    lines = Lines(Cancelled(), ranks)
    with pytest.raises(Cancelled):
        launch("launched_rank", job, ranks, log=lines, env=env)
    assert {line for line in lines if line.endswith("saves")} == {f"rank {rank} saves" for rank in range(ranks)}
    assert gone(lines.pids)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_rank_that_does_not_listen_is_killed(job: Path, env: dict[str, str], ranks: int) -> None:
    job.write_text("stubborn")
    lines = Lines(KeyboardInterrupt(), ranks)
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        launch("launched_rank", job, ranks, log=lines, env=env, grace=1)
    assert time.monotonic() - begun < 60
    assert gone(lines.pids, within=2)


@pytest.mark.parametrize("ranks", [1, 2])
def test_no_rank_outlives_a_launcher_that_is_killed(job: Path, env: dict[str, str], ranks: int) -> None:
    job.write_text("held")
    code = "import sys, flows.launch as it; it.launch('launched_rank', sys.argv[1], int(sys.argv[2]))"
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


def test_it_works_from_a_thread(job: Path, env: dict[str, str]) -> None:
    job.write_text("finish")
    lines = Lines()
    thread = threading.Thread(target=launch, args=("launched_rank", job), kwargs={"log": lines, "env": env})
    thread.start()
    thread.join(60)
    assert "grüße None" in lines
