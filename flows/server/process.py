"""Starts the processes of Prefect, waits until they are ready, and ends them."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import httpx
import psutil

from flows.server.reach import ServiceError
from flows.server.settings import HOST, api_url, server_environment

START_SECONDS = 180
STOP_SECONDS = 30  # between SIGTERM and SIGKILL
TAIL = 15  # lines of the log in an error


def open_socket(port: int) -> socket.socket:
    """Listens at a port, or for 0 at a free one, for a server that starts later: nobody else can take the port
    meanwhile. Raises ServiceError if the port is in use."""
    listening = socket.socket()
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((HOST, port))
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise ServiceError(
            f"port {port} of {HOST} is used by another program ({error.strerror}): stop it, or choose another port, "
            "e.g. `honeybee up --port 4300` or `make train PORT=4300`"
        ) from None
    return listening


def start_server(
    listening: socket.socket, auth: str, env: Mapping[str, str], log: Path, temporary: bool = False
) -> subprocess.Popen:
    """Starts a server that asks for `auth` on a listening socket, which then belongs to it. A temporary server has no
    UI and ends with this process."""
    port = listening.getsockname()[1]
    arguments = [str(listening.fileno()), *([str(os.getpid())] if temporary else [])]
    with listening:
        return start(
            ["-m", "flows.server.serve", *arguments],
            {**env, **server_environment(auth, port)},
            log,
            pass_fds=[listening.fileno()],
        )


def start(
    arguments: Sequence[str], env: Mapping[str, str], log: Path, pass_fds: Sequence[int] = ()
) -> subprocess.Popen:
    """Starts a Python process with `env` added to the environment and its output appended to `log`."""
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, *arguments],
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=pass_fds,
            start_new_session=True,  # survives the terminal, and Ctrl-C in it
        )


def wait_until(ready: Callable[[], bool], process: subprocess.Popen, name: str, log: Path) -> None:
    """Waits until a process is ready. Raises ServiceError with the end of its log, after ending it, if it is not."""
    deadline = time.monotonic() + START_SECONDS
    try:
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-TAIL:])
                raise ServiceError(f"the Prefect {name} did not start; the last lines of {log}:\n{tail}")
            time.sleep(0.1)
    except BaseException:
        end_popen(process, 1)
        raise


def answers(port: int) -> bool:
    """Whether the server that was started at `port` is ready. While it starts, the connection waits in the queue of its
    socket."""
    try:
        with httpx.Client(trust_env=False, timeout=5) as client:
            return client.get(f"{api_url(port)}/health").text.strip() == "true"
    except httpx.HTTPError:
        return False


def end(processes: list[psutil.Process], seconds: float = STOP_SECONDS) -> None:
    """Terminates the processes, and kills those that are still alive after `seconds`.

    A zombie has ended: in a container whose first process collects no orphans, it would stay for ever.
    """
    for ask in (psutil.Process.terminate, psutil.Process.kill):
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                ask(process)
        deadline = time.monotonic() + seconds
        while (processes := list(filter(is_alive, processes))) and time.monotonic() < deadline:
            time.sleep(0.05)


def is_alive(process: psutil.Process) -> bool:
    """Whether a process runs. A zombie does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def end_popen(process: subprocess.Popen, seconds: float = STOP_SECONDS) -> None:
    """The same for a process that this one has started."""
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
