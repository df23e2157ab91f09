"""Runs contenders in processes of their own, in turn, and reads their time and the memory of their process trees."""

import json
import statistics
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import Any

import psutil

SAMPLE_EVERY = 0.05  # seconds


@dataclass(frozen=True)
class Result:
    seconds: list[float]  # of each run, as the contender says: without its imports
    peak: int  # bytes: the largest proportional set size (shared pages shared out) of the tree, over all runs

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def measure(commands: dict[str, list[str]], runs: int) -> dict[str, Result]:
    """name → arguments of this Python. A contender prints its seconds as JSON on its last line. Runs alternate, so
    that other load on the machine meets all alike. Raises RuntimeError if one fails."""
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    peaks = dict.fromkeys(commands, 0)
    for _ in range(runs):
        for name, arguments in commands.items():
            took, peak = _run(arguments)
            seconds[name].append(took)
            peaks[name] = max(peaks[name], peak)
    return {name: Result(seconds[name], peaks[name]) for name in commands}


def _run(arguments: list[str]) -> tuple[float, int]:
    out, peak = watched([sys.executable, *arguments])
    return float(json.loads(out.strip().splitlines()[-1])), peak


def watched(command: list[str], **options: Any) -> tuple[str, int]:
    """What a process printed, and the largest proportional set size of its tree, in bytes; options: of Popen. Raises
    RuntimeError if it failed."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options) as process:
        peak, ended = [0], threading.Event()
        watcher = threading.Thread(target=_watch, args=(psutil.Process(process.pid), peak, ended))
        watcher.start()
        out, _ = process.communicate()
        ended.set()
        watcher.join()
    if process.returncode:
        raise RuntimeError(f"{command[:3]} failed with exit code {process.returncode}")
    return out, peak[0]


def _watch(process: psutil.Process, peak: list[int], ended: threading.Event) -> None:
    while not ended.wait(SAMPLE_EVERY):
        total = 0
        for each in _tree(process):
            try:
                total += each.memory_full_info().pss
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue  # it ended between the listing and the look
        peak[0] = max(peak[0], total)


def _tree(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def markdown(rows: list[dict[str, str]]) -> str:
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([row[column] for column in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
