"""Runs a job in processes of their own, one per rank, and leaves none behind."""

import contextlib
import math
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO

GRACE = 60.0  # seconds for the ranks to write a checkpoint when they are told to stop
SHOWN = 30  # last lines of a failed rank


class LaunchError(RuntimeError):
    """A rank failed; the message is that rank's own error."""


def launch(
    module: str,
    job: Path,
    ranks: int = 1,
    threads: int | None = None,
    log: Callable[[str], None] = print,
    env: Mapping[str, str] | None = None,
    grace: float = GRACE,
) -> None:
    """Runs `python -m MODULE JOB` once per rank, with the environment that torchrun gives, and waits for the end.

    threads: CPU threads of a rank; the cores divided by the ranks where absent. log: is given every line of output.
    env: added to this process's environment. If anything is raised here, as when a Prefect run is cancelled, or if a
    rank fails, the ranks are told to stop (SIGTERM), have `grace` seconds to save, and are killed with all that they
    started. They know by their standard input, which is held open here, that this process lives (model/training/
    lifeline.py). It is torchrun on one machine without its agent: that gives each rank a session of its own, so that
    nobody can end the ranks for certain when the agent is killed, and takes seconds to import.

    Raises LaunchError when a rank fails. Call it from any thread or process.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    shared = {
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "OMP_NUM_THREADS": str(threads or max(1, cores // ranks)),
        "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin while they wait slow all others down when cores are shared
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HONEYBEE_LIFELINE": "stdin",
    }
    running = _Ranks(grace)
    try:
        for rank in range(ranks):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            running.start([sys.executable, "-m", module, str(job)], {**os.environ, **shared, **own, **(env or {})})
        try:
            for line in running.lines():
                log(line)
        except BaseException:
            running.stop()
            for line in running.lines():  # what the ranks say while they save
                log(line)
            raise
    finally:
        running.kill()
    running.raise_failure(module)


class _Ranks:
    """The processes, each in a session of its own, and what they print."""

    def __init__(self, grace: float) -> None:
        self.grace, self.deadline = grace, math.inf
        self._processes: list[subprocess.Popen] = []
        self._last: list[deque[str]] = []  # of each rank, its last lines
        self._trouble: dict[int, int] = {}  # rank → when it failed, as a place in the order of all that was seen
        self._seen = 0
        self._open: set[int] = set()  # ranks whose output has not ended
        self._queue: queue.Queue[tuple[int, str | None]] = queue.Queue()

    def start(self, command: list[str], env: Mapping[str, str]) -> None:
        process = subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        rank = len(self._processes)
        self._processes.append(process)
        self._last.append(deque(maxlen=SHOWN))
        self._open.add(rank)
        threading.Thread(target=self._read, args=(rank, process.stdout), name=f"output {rank}", daemon=True).start()

    def _read(self, rank: int, output: IO[str]) -> None:
        with output:
            for line in output:
                self._queue.put((rank, line.rstrip("\n")))
        self._queue.put((rank, None))

    def lines(self) -> Iterator[str]:
        """What they print, until all have ended or the deadline has passed. If one fails, the others are stopped."""
        while (self._open or None in self._codes()) and time.monotonic() < self.deadline:
            with contextlib.suppress(queue.Empty):
                rank, line = self._queue.get(timeout=0.1)
                self._seen += 1
                if line is None:
                    self._open.discard(rank)
                else:
                    self._last[rank].append(line)
                    if line.startswith("Traceback "):
                        self._trouble[rank] = self._seen
                    yield line if rank == 0 else f"[rank {rank}] {line}"
                    continue
            codes = self._codes()
            for rank, code in enumerate(codes):
                if code:
                    self._trouble.setdefault(rank, self._seen)
            if any(codes):
                self.stop()
            if None not in codes:  # a child that keeps the output open after all ranks have ended is given a moment
                self.deadline = min(self.deadline, time.monotonic() + 5)

    def _codes(self) -> list[int | None]:
        return [process.poll() for process in self._processes]

    def stop(self) -> None:
        """Tells all to stop, once, and sets the deadline."""
        if self.deadline == math.inf:
            self.deadline = time.monotonic() + self.grace
            for process in self._processes:
                process.terminate()

    def kill(self) -> None:
        """Ends each process and all that it started."""
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            assert process.stdin is not None
            process.stdin.close()

    def raise_failure(self, module: str) -> None:
        """Raises LaunchError with the error of the rank that failed first; the others fail since it is gone."""
        failed = [rank for rank, code in enumerate(self._codes()) if code]
        if not failed:
            return
        rank = min(failed, key=lambda rank: self._trouble.get(rank, self._seen))
        code = self._processes[rank].returncode
        if code < 0:
            what = f"was killed by {signal.Signals(-code).name} (did the machine run out of memory?)"
        else:
            what = f"failed (exit code {code}):\n" + "\n".join(self._last[rank])
        raise LaunchError(f"{module}: rank {rank} {what}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
