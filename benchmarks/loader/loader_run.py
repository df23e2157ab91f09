"""Runs a loader's program in its environment: one process, or one for each rank."""

import json
import os
import re
import socket
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.loader.loader_data import SHARES
from benchmarks.measure import last_line, watched

TIMEOUT = 300  # seconds, for runs that may hang


@dataclass(frozen=True)
class Contender:
    name: str
    python: Path
    module: str
    data: Path
    shares: tuple[tuple[str, float], ...] = tuple(SHARES.items())

    @property
    def slug(self) -> str:
        """A name for its files."""
        return self.module.rpartition(".")[2]

    def command(self, what: str, setup: dict[str, Any], *arguments: str) -> list[str]:
        full = {"data": str(self.data), "shares": dict(self.shares), **setup}
        return [str(self.python), "-W", "ignore", "-m", self.module, what, json.dumps(full), *arguments]


@dataclass(frozen=True)
class Ran:
    result: dict[str, float]
    peak: int  # bytes


def run(contender: Contender, what: str, setup: dict[str, Any], *arguments: str) -> Ran:
    with tempfile.TemporaryFile("w+") as errors:
        try:
            out, peak = watched(contender.command(what, setup, *arguments), stderr=errors)
        except RuntimeError as error:
            errors.seek(0)
            raise RuntimeError(f"{contender.name}, {what} of {setup}: {_last_error(errors.read())}") from error
    return Ran(last_line(out) if what != "trace" else {}, peak)


class Refused(Exception):
    """The last line of a loader that ended with an error."""


def run_ranks(
    contender: Contender, ranks: int, setup: dict[str, Any], what: dict[str, Any], out: Path
) -> list[list[Any]]:
    """Returns the units that each rank was given. Raises Refused if a rank fails."""
    for rank in range(ranks):
        out.with_name(f"{out.name}.{rank}").unlink(missing_ok=True)
    command = contender.command("trace", setup, json.dumps({"out": str(out), **what}))
    processes = []
    port = _free_port()
    for rank in range(ranks):
        world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = {**os.environ, **{key: str(value) for key, value in (world | address).items()}}
        pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, env=environment, start_new_session=True, **pipes))
    errors = []
    for process in processes:
        try:
            error = process.communicate(timeout=20 if errors else TIMEOUT)[1]
        except subprocess.TimeoutExpired:
            error = "hangs"
        if process.poll() != 0:
            errors.append(_last_error(error))
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, 9)
            process.communicate()
    if errors:
        raise Refused(errors[0])
    return [json.loads(out.with_name(f"{out.name}.{rank}").read_text()) for rank in range(ranks)]


def _last_error(text: str) -> str:
    lines = [re.sub(r"^\[rank\d+\]: *", "", line.strip()) for line in text.splitlines() if line.strip()]
    told = [line for line in lines if "Error" in line.split(":")[0] or line.startswith("not offered")]
    return (told or lines or ["no message"])[-1]


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]
