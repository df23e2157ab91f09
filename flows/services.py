"""The Prefect server and worker of this directory: started once, found again, stopped only if started here.

A started process is remembered as `.honeybee/<name>.json` with its pid and its start time, so that a pid that the
system has given to another process since is never touched.
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

from flows.settings import HOME, HOST, OWNER, WORK_POOL, api_url, environment, owner

_SERVER = "prefect.server.api.server:create_app"  # in the command line of every Prefect server
STOP_SECONDS = 30  # between asking a process to end and killing it


class ServiceError(RuntimeError):
    """A server or worker that did not start; the message names its log."""


def start(port: int, deploy_file: Path, log: Callable[[str], None] = print) -> None:
    """Starts what does not run yet: server, worker; then registers the deployments of `deploy_file`.

    Raises ServiceError if the port belongs to something else, or a process ends before it is ready.
    """
    if not deploy_file.is_file():
        raise ServiceError(f"no {deploy_file} here: run this in the checkout, whose prefect.yaml names the deployments")
    env = {**os.environ, **environment(port)}
    if _healthy(port):
        log(f"A Prefect server is running at {api_url(port)}")
    else:
        log(f"Starting the Prefect server at {api_url(port)} …")
        command = ["server", "start", "--host", HOST, "--port", str(port)]
        _start("server", command, env, ready=lambda: _healthy(port), port=port)
    worker = running("worker")
    if worker and worker["port"] == port:
        log("A worker is running")
    else:
        if worker:
            _stop("worker", log)  # it serves another port
        log("Starting a worker …")
        command = ["worker", "start", "--pool", WORK_POOL, "--type", "process"]
        _start("worker", command, env, ready=lambda: _exists(f"{api_url(port)}/work_pools/{WORK_POOL}"), port=port)
    deploy = ["--no-prompt", "deploy", "--all", "--prefect-file", str(deploy_file)]
    done = subprocess.run([sys.executable, "-m", "prefect", *deploy], env=env, text=True, capture_output=True)
    if done.returncode:
        raise ServiceError(f"deploying {deploy_file} failed:\n{done.stdout}{done.stderr}")
    log(f"Deployed {deploy_file}")


def stop(log: Callable[[str], None] = print) -> None:
    """Ends the worker with the runs it carries out, then the server: those that `start` started here, if they live."""
    for name in ("worker", "server"):
        _stop(name, log)


def end_orphans() -> None:
    """Ends short-lived servers whose command was killed before it could end them."""
    orphans = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # processes end meanwhile, and those of others tell nothing
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
            start_new_session=True,  # lives on when the terminal closes
        )
    started = psutil.Process(process.pid).create_time()
    _record(name).write_text(json.dumps({"pid": process.pid, "started": started, "port": port}))
    deadline = time.monotonic() + 180
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            _stop(name, lambda _: None)
            tail = "\n".join(log_file.read_text(errors="replace").splitlines()[-15:])
            raise ServiceError(f"the Prefect {name} did not start; the end of {log_file}:\n{tail}")
        time.sleep(0.5)


def _stop(name: str, log: Callable[[str], None]) -> None:
    record = running(name)
    if record:
        process = psutil.Process(record["pid"])
        log(f"Stopping the Prefect {name} (pid {process.pid}) …")
        family = process.children(recursive=True)
        # A worker's children are its runs: they end their ranks, and tell the server what became of them.
        _end(process.children())
        _end([process])
        _end([member for member in family if member.is_running()])
    _record(name).unlink(missing_ok=True)


def _end(processes: list[psutil.Process]) -> None:
    """Asks them to end; kills those that have not after STOP_SECONDS."""
    for ask in (psutil.Process.terminate, psutil.Process.kill):
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                ask(process)
        _, processes = psutil.wait_procs(processes, timeout=STOP_SECONDS)


def _record(name: str) -> Path:
    return HOME / f"{name}.json"


def running(name: str) -> dict[str, Any] | None:
    """The record of the "server" or "worker" that `start` started, if it still lives: its pid, start time and port."""
    try:
        record = json.loads(_record(name).read_text())
        alive = psutil.Process(record["pid"]).create_time() == record["started"]
    except (FileNotFoundError, psutil.NoSuchProcess):
        return None
    return record if alive else None


def _healthy(port: int) -> bool:
    """Whether a Prefect server answers. Raises ServiceError if something else does."""
    try:
        with urllib.request.urlopen(f"{api_url(port)}/health", timeout=5) as response:
            healthy = response.read().strip() == b"true"
    except urllib.error.HTTPError:
        healthy = False
    except OSError:
        return False
    if not healthy:
        raise ServiceError(
            f"port {port} of {HOST} belongs to something else: choose another, e.g. `make train PORT=4300`"
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
