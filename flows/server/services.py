"""Starts, finds and stops the Prefect server and worker of the working directory.

A started process is recorded in `.honeybee/<name>.json` with its pid and start time, so that another process that has
since been given the same pid is never touched.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from flows.server.settings import HOME, HOST, OWNER, WORK_POOL, api_url, environment, owner

_SERVER = "prefect.server.api.server:create_app"  # part of the command line of every Prefect server
STOP_SECONDS = 30  # between SIGTERM and SIGKILL


class ServiceError(RuntimeError):
    """A server or worker did not start; the message names its log file or says what to do."""


def start(port: int, deploy_file: Path, log: Callable[[str], None] = print) -> None:
    """Starts the server and the worker unless they are running, then registers the deployments of `deploy_file`.

    Raises ServiceError if another program uses the port, or if a process ends before it is ready.
    """
    if not deploy_file.is_file():
        raise ServiceError(f"{deploy_file} does not exist: run this command in a checkout of the project")
    env = {**os.environ, **environment(port)}
    if _healthy(port):
        log(f"A Prefect server is already running at {api_url(port)}")
    else:
        log(f"Starting the Prefect server at {api_url(port)} …")
        command = ["server", "start", "--host", HOST, "--port", str(port)]
        _start("server", command, env, ready=lambda: _healthy(port), port=port)
    worker = running_record("worker")
    if worker and worker["port"] == port:
        log("A worker is already running")
    else:
        if worker:
            _stop("worker", log)  # it belongs to a server on another port
        log("Starting a worker …")
        command = ["worker", "start", "--pool", WORK_POOL, "--type", "process"]
        _start("worker", command, env, ready=lambda: _exists(f"{api_url(port)}/work_pools/{WORK_POOL}"), port=port)
    deploy = ["--no-prompt", "deploy", "--all", "--prefect-file", str(deploy_file)]
    done = subprocess.run([sys.executable, "-m", "prefect", *deploy], env=env, text=True, capture_output=True)
    if done.returncode:
        raise ServiceError(f"deploying {deploy_file} failed:\n{done.stdout}{done.stderr}")
    log(f"Deployed {deploy_file}")


def stop(log: Callable[[str], None] = print) -> None:
    """Stops the worker with its runs, then the server, if `start` started them and they are alive."""
    for name in ("worker", "server"):
        _stop(name, log)


def end_orphans() -> None:
    """Ends temporary servers whose command was killed before it could end them."""
    orphans = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # a process may end meanwhile or belong to another user
            served = process.environ().get(OWNER)
            if served and _SERVER in process.cmdline() and not _lives(served):
                orphans.append(process)
    _end(orphans)


def _lives(served: str) -> bool:
    try:
        return owner(psutil.Process(int(served.split()[0]))) == served
    except psutil.NoSuchProcess:
        return False


def _start(name: str, command: list[str], env: Mapping[str, str], ready: Callable[[], bool], port: int) -> None:
    HOME.mkdir(exist_ok=True)
    log_file = HOME / f"{name}.log"
    with log_file.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", *command],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # survives the terminal
        )
    started = psutil.Process(process.pid).create_time()
    _record(name).write_text(json.dumps({"pid": process.pid, "started": started, "port": port}))
    deadline = time.monotonic() + 180
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            _stop(name, lambda _: None)
            tail = "\n".join(log_file.read_text(errors="replace").splitlines()[-15:])
            raise ServiceError(f"the Prefect {name} did not start; the last lines of {log_file}:\n{tail}")
        time.sleep(0.5)


def _stop(name: str, log: Callable[[str], None]) -> None:
    record = running_record(name)
    if record:
        process = psutil.Process(record["pid"])
        log(f"Stopping the Prefect {name} (pid {process.pid}) …")
        family = process.children(recursive=True)
        # A worker's children are its runs: they end their ranks and report their final state to the server.
        _end(process.children())
        _end([process])
        _end([member for member in family if member.is_running()])
    _record(name).unlink(missing_ok=True)


def _end(processes: list[psutil.Process]) -> None:
    """Terminates the processes, and kills those that are still alive after STOP_SECONDS."""
    for ask in (psutil.Process.terminate, psutil.Process.kill):
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                ask(process)
        _, processes = psutil.wait_procs(processes, timeout=STOP_SECONDS)


def _record(name: str) -> Path:
    return HOME / f"{name}.json"


def running_record(name: str) -> dict[str, Any] | None:
    """Returns pid, start time and port of the "server" or "worker" that `start` started, or None if it is not alive."""
    try:
        record = json.loads(_record(name).read_text())
        alive = psutil.Process(record["pid"]).create_time() == record["started"]
    except (FileNotFoundError, psutil.NoSuchProcess):
        return None
    return record if alive else None


def _healthy(port: int) -> bool:
    """Whether a Prefect server answers at `port`. Raises ServiceError if another program does."""
    try:
        with urllib.request.urlopen(f"{api_url(port)}/health", timeout=5) as response:
            healthy = response.read().strip() == b"true"
    except urllib.error.HTTPError:
        healthy = False
    except OSError:
        return False
    if not healthy:
        raise ServiceError(
            f"port {port} of {HOST} is used by another program: choose another port, e.g. `make train PORT=4300`"
        )
    return True


def _exists(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return False
        raise
