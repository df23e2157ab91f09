"""A rank for the tests of the launcher, and helpers to check on it."""

import os
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# The rank's program: it prints its process id and then acts out the scenario named in the job file.
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
    if what == "settings":
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "EXTRA")
        print("settings", *(os.environ[name] for name in names))
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
    """Collects lines; raises `error` when `ranks` ranks have printed `ready`."""

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


def write_rank(directory: Path) -> dict[str, str]:
    """Writes the module `launched_rank`; returns the environment variables with which it can be imported."""
    (directory / "launched_rank.py").write_text(RANK)
    lifeline = ROOT / "model" / "lifeline.py"
    return {"PYTHONPATH": f"{directory}{os.pathsep}{ROOT}", "LIFELINE": str(lifeline)}


def gone(pids: list[int], within: float = 0.0) -> bool:
    """Whether all processes have ended, after at most `within` seconds."""
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
