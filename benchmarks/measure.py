"""What all benchmarks share: options, the machine's description, tables, and processes measured for time and memory.

A contender of `measure` is a module that is started with `python -m` in its own process.
"""

import argparse
import contextlib
import functools
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

SAMPLE_EVERY = 0.05  # seconds


class Parser(argparse.ArgumentParser):
    """Limits this process and its children to one thread for --toy: toy sizes are too small for more."""

    def parse_args(self, *arguments: Any, **options: Any) -> Any:
        parsed = super().parse_args(*arguments, **options)
        if parsed.toy:
            import torch

            torch.set_num_threads(1)
            os.environ["OMP_NUM_THREADS"] = "1"
        return parsed


def parser(doc: str | None) -> Parser:
    """A parser with the options of every benchmark: --toy and --workdir."""
    made = Parser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--toy", action="store_true", help="run on generated data in seconds, to see that it works")
    made.add_argument("--workdir", type=Path, help="where --toy keeps its data, so that another run can reuse it")
    return made


@contextlib.contextmanager
def working(options: argparse.Namespace) -> Iterator[Path]:
    """The directory of --workdir, or a temporary one."""
    with contextlib.ExitStack() as stack:
        directory = options.workdir or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        directory.mkdir(parents=True, exist_ok=True)
        yield directory.resolve()


@functools.cache
def machine() -> str:
    """CPU, cores, BLAS and the build of PyTorch, as one line."""
    import numpy as np
    import torch

    config = torch.__config__.show()
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    build = f"CUDA {torch.version.cuda} build" if torch.version.cuda else "CPU build"
    mkl, dnn = re.search(r"Math Kernel Library Version (\S+)", config), re.search(r"MKL-DNN v(\S+)", config)
    parts = [f"MKL {mkl[1].split('-')[0]}" if mkl else "no MKL", f"oneDNN {dnn[1]}" if dnn else "no oneDNN"]
    return (
        f"CPU: {_cpu_model()}, {len(os.sched_getaffinity(0))} cores, {torch.backends.cpu.get_cpu_capability()}; "
        f"BLAS: {parts[0]} (torch), {blas['name']} {blas['version']} (numpy); "
        f"torch {torch.__version__}: {build}, {', '.join(parts)}, {torch.get_num_threads()} threads"
    )


def _cpu_model() -> str:
    """The model from /proc/cpuinfo, with family and number: virtual machines may show only a brand ("AMD EPYC")."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        if "model name" in facts:
            return f"{facts['model name']} (family {facts.get('cpu family')}, model {facts.get('model')})"
    import platform

    return platform.processor() or platform.machine()


def show(title: str, rows: Sequence[Mapping[str, str]]) -> None:
    """Prints a table with its title, after the machine that it was measured on."""
    print(f"\n{title}\n{machine()}\n\n{markdown(rows)}", flush=True)


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([row[column] for column in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def missing(name: str, module: str) -> bool:
    """Whether a peer is absent; if so, reports by name that it is skipped."""
    if importlib.util.find_spec(module) is not None:
        return False
    print(f"skipped: {name} ({module} is not installed)", flush=True)
    return True


@dataclass(frozen=True)
class Result:
    seconds: list[float]  # of each run, as the contender reports them: without its imports
    peak: int  # bytes: the largest proportional set size of the process tree, over all runs

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def measure(commands: Mapping[str, Sequence[str]], runs: int) -> dict[str, Result]:
    """Runs contenders in turn, so that other load on the machine affects all alike.

    commands: name → module and arguments, for `python -m`; it must print its seconds as JSON on its last line. Raises
    RuntimeError if one fails.
    """
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    peaks = dict.fromkeys(commands, 0)
    for _ in range(runs):
        for name, arguments in commands.items():
            out, peak = watched([sys.executable, "-m", *arguments])
            seconds[name].append(float(last_line(out)))
            peaks[name] = max(peaks[name], peak)
    return {name: Result(seconds[name], peaks[name]) for name in commands}


def last_line(out: str) -> Any:
    """The JSON value on the last line of a program's output."""
    return json.loads(out.strip().splitlines()[-1])


def watched(command: Sequence[str], **options: Any) -> tuple[str, int]:
    """Runs a process; returns its output and the largest proportional set size of its tree, in bytes.

    options: of Popen. Raises RuntimeError if the process fails.
    """
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options) as process:
        peak, ended = [0], threading.Event()
        watcher = threading.Thread(target=_watch, args=(psutil.Process(process.pid), peak, ended))
        watcher.start()
        out, _ = process.communicate()
        ended.set()
        watcher.join()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command[:5])} failed with exit code {process.returncode}")
    return out, peak[0]


def _watch(process: psutil.Process, peak: list[int], ended: threading.Event) -> None:
    pause = SAMPLE_EVERY
    while not ended.wait(pause):
        total, start = 0, time.perf_counter()
        for each in _tree(process):
            try:
                total += each.memory_full_info().pss
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue  # it ended after it was listed
        peak[0] = max(peak[0], total)
        pause = max(SAMPLE_EVERY, 9 * (time.perf_counter() - start))  # looking takes a tenth of a core at most


def _tree(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
