"""The ranks of one machine: processes, each in a session of its own, and what is told of them."""

import contextlib
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO

BEAT = 5.0  # seconds between the signs of life of a connection to another machine


@dataclass(frozen=True)
class Line:
    """A rank printed it."""

    rank: int
    text: str


@dataclass(frozen=True)
class Closed:
    """A rank's output has ended, also that of all it started."""

    rank: int


@dataclass(frozen=True)
class Ended:
    """A rank's process has ended. code: as Popen's returncode, −n after signal n."""

    rank: int
    code: int


Event = Line | Closed | Ended


class PortInUse(RuntimeError):
    """Another program listens at the port where the ranks shall meet."""


class Processes:
    """Starts ranks, tells of them by `tell` from threads of its own, and ends them."""

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
        """Tells all to stop."""
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


def rank_environment(
    rank: int, local_rank: int, world: int, local_world: int, address: str, port: int, threads: int | None
) -> dict[str, str]:
    """What torchrun would tell a rank. threads: of the CPU; this machine's cores divided by its ranks where absent."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(local_rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(local_world),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": str(threads or max(1, cores // local_world)),
        "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin while they wait slow all others down when cores are shared
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HONEYBEE_LIFELINE": "stdin",
    }


def listen(port: int) -> socket.socket:
    """Listens at `port` of every address, as the first rank will. Raises PortInUse."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, dualstack_ipv6=both)
    except OSError as error:
        raise PortInUse(
            f"port {port}, where the ranks shall meet, cannot be had ({error.strerror}): end what uses it, or set "
            "launch.rendezvous.port to another"
        ) from None


def check_port(port: int) -> None:
    """Raises PortInUse."""
    listen(port).close()
