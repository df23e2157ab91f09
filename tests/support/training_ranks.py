"""Runs training jobs in real processes, forked from a server that has already imported torch and DeepSpeed."""

import json
import logging
import os
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from support.fork_server import server

TIMEOUT = 120.0  # seconds


class Ranks:
    """The processes of a job; each logs to its own file, including the traceback of an error."""

    def __init__(self, job: Mapping[str, Any], ranks: int = 1, own: Callable[[], Sequence[Any]] = tuple):
        """own: makes additional callbacks in each rank; can be pickled."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.logs = [Path(job["work"]).with_suffix(f".rank{rank}.log") for rank in range(ranks)]
        self.processes = []
        for rank, log in enumerate(self.logs):
            environment: dict[str, Any] = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_PORT": port}
            environment["MASTER_ADDR"] = "127.0.0.1"
            environment |= {key: value for key, value in os.environ.items() if key.startswith("WANDB_")}
            log.unlink(missing_ok=True)
            process = server.Process(target=_rank, args=(json.dumps(job), environment, str(log), own))
            process.start()
            self.processes.append(process)

    def wait(self) -> list[int | None]:
        """Returns the exit codes; a rank that takes longer than TIMEOUT is killed."""
        deadline = time.monotonic() + TIMEOUT
        for process in self.processes:
            process.join(max(0.1, deadline - time.monotonic()))
            if process.exitcode is None:
                process.kill()
                process.join()
        return [process.exitcode for process in self.processes]

    def signal_when(self, path: Path, number: signal.Signals) -> list[int | None]:
        """Sends the signal to every rank as soon as the path exists; then waits."""
        deadline = time.monotonic() + TIMEOUT
        while not path.exists():
            assert all(process.is_alive() for process in self.processes), self.output()
            assert time.monotonic() < deadline, f"no {path}: {self.output()}"
            time.sleep(0.002)
        for process in self.processes:
            assert process.pid is not None
            os.kill(process.pid, number)
        return self.wait()

    def output(self) -> str:
        return "\n".join(log.read_text() for log in self.logs if log.exists())


def train(job: Mapping[str, Any], ranks: int = 1) -> None:
    """Trains a job that must succeed."""
    running = Ranks(job, ranks)
    codes = running.wait()
    assert codes == [0] * ranks, running.output()


def fails(job: Mapping[str, Any], ranks: int = 1) -> str:
    """Trains a job that must fail; returns the output of its ranks."""
    running = Ranks(job, ranks)
    assert 0 not in running.wait()
    return running.output()


def curve(job: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the lines of metrics.jsonl."""
    return [json.loads(line) for line in (Path(job["work"]) / "metrics.jsonl").read_text().splitlines()]


def losses(job: Mapping[str, Any]) -> list[tuple[int, float, float]]:
    """Returns (step, loss, gradient norm) of each line."""
    return [(line["step"], line["loss"], line["grad_norm"]) for line in curve(job)]


def in_a_rank(function: Callable[..., None], *arguments: Any) -> None:
    """Calls a module-level function, which must not raise, in a separate process."""
    process = server.Process(target=_alone, args=(function, arguments))
    process.start()
    process.join(TIMEOUT)
    process.kill()
    assert process.exitcode == 0


def _alone(function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    function(*arguments)


def _rank(job: str, environment: Mapping[str, Any], log: str, own: Callable[[], Sequence[Any]]) -> None:
    import torch

    from model.training.job import Job
    from model.training.stage import run

    warnings.simplefilter("ignore")
    logging.basicConfig(filename=log, level=logging.INFO, force=True)
    os.environ.update({key: str(value) for key, value in environment.items()})
    torch.set_num_threads(1)
    try:
        code = run(Job.model_validate_json(job), own())
    except Exception:
        with Path(log).open("a") as file:
            file.write(traceback.format_exc())
        os._exit(1)  # exit at once like a real rank, even if others are waiting for it
    sys.exit(code)
