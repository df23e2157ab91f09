"""The ranks of one host: processes, each in its own session, and the events that report on them."""

import contextlib
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO

BEAT = 5.0  # seconds between heartbeats of a connection to another host


@dataclass(frozen=True)
class Line:
    """A line of a rank's output."""

    rank: int
    text: str


@dataclass(frozen=True)
class Closed:
    """The output of a rank and of all its children has ended."""

    rank: int


@dataclass(frozen=True)
class Ended:
    """A rank's process has ended. code: Popen's returncode, −n after signal n."""

    rank: int
    code: int


Event = Line | Closed | Ended


class PortInUse(RuntimeError):
    """Another program is using the rendezvous port."""


class Processes:
    """Starts ranks, reports their events to `tell` from its own threads, and ends them."""

    def __init__(self, tell: Callable[[Event], None]) -> None:
        self._tell = tell
        self._processes: list[subprocess.Popen] = []

    def start(self, rank: int, command: list[str], env: Mapping[str, str]) -> None:
        process = subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        self._processes.append(process)
        for name, work in (("output", self._read), ("end", self._wait)):
            threading.Thread(target=work, args=(rank, process), name=f"{name} {rank}", daemon=True).start()

    def _read(self, rank: int, process: subprocess.Popen) -> None:
        output: IO[str] = process.stdout  # type: ignore[assignment]  # a pipe
        with output:
            for line in output:
                self._tell(Line(rank, line.rstrip("\n")))
        self._tell(Closed(rank))

    def _wait(self, rank: int, process: subprocess.Popen) -> None:
        self._tell(Ended(rank, process.wait()))

    def stop(self) -> None:
        """Sends SIGTERM to all ranks."""
        for process in self._processes:
            process.terminate()

    def kill(self) -> None:
        """Kills each rank and all of its children."""
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            assert process.stdin is not None
            process.stdin.close()


def rank_environment(
    rank: int, local_rank: int, world: int, local_world: int, address: str, port: int, threads: int | None
) -> dict[str, str]:
    """Returns torchrun's variables for a rank. threads: CPU threads; default: cores of this host / its ranks.
    There is a parameter for each variable."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(local_rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(local_world),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": str(threads or max(1, cores // local_world)),
        "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads slow down the others where ranks share cores
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HONEYBEE_LIFELINE": "stdin",
    }


def listen(port: int) -> socket.socket:
    """Listens at `port` on all addresses, as rank 0 does. Raises PortInUse."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, dualstack_ipv6=both)
    except OSError as error:
        raise PortInUse(
            f"cannot listen at the rendezvous port {port} ({error.strerror}): stop the program that uses it, or set "
            "launch.rendezvous.port to another port"
        ) from None


def check_port(port: int) -> None:
    """Raises PortInUse if another program listens at `port`."""
    listen(port).close()
