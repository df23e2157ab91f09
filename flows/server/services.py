"""Starts, finds and stops the Prefect server and worker of the working directory.

A started process is recorded in `.honeybee/<name>.json` with its pid and start time, so that another process that has
since been given the same pid is never touched, and so that only the server of this directory is ever given its secret:
another user's server at the same port would run commands here through the worker.
"""

import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil

from flows.server import process as processes
from flows.server.reach import ServiceError, check_api
from flows.server.settings import HOME, LOGIN, WORK_POOL, api_url, environment, secret, ui_url, write_private

__all__ = ["ServiceError", "check_server", "running_record", "start", "stop"]
_LOGIN_PATH = "/honeybee/login"  # see serve.py


def start(port: int, deploy_file: Path, log: Callable[[str], None] = print) -> None:
    """Starts the server and the worker unless they are running, then registers the deployments of `deploy_file`.

    Raises ServiceError if another program uses the port, if this directory's server has another port or another secret,
    or if a process ends before it is ready.
    """
    if not deploy_file.is_file():
        raise ServiceError(f"{deploy_file} does not exist: run this command in a checkout of the project")
    server = running_record("server")
    if server and server["port"] != port:
        raise ServiceError(
            f"the Prefect server of this directory runs at {ui_url(server['port'])}: use --port {server['port']}, "
            "or stop it with `honeybee down` first"
        )
    if server:
        log(f"A Prefect server is already running at {ui_url(port)}")
        env = environment(port)
        check_server(port)
    else:
        listening = processes.open_socket(port)
        log(f"Starting the Prefect server at {ui_url(port)} …")
        env = environment(port)
        started = processes.start_server(listening, secret(), env, HOME / "server.log")
        server = _keep("server", started, port, lambda: processes.answers(port))
    _write_login(port)
    worker = running_record("worker")
    if worker and worker["port"] == port:
        log("A worker is already running")
    else:
        if worker:
            _stop("worker", log)  # it belongs to a server on another port
        log("Starting a worker …")
        worker_command = ["worker", "start", "--pool", WORK_POOL, "--type", "process"]
        of_server = ["-m", "flows.server.work", str(server["pid"])]
        started = processes.start([*of_server, *worker_command], env, HOME / "worker.log")
        _keep("worker", started, port, lambda: _pool_exists(port))
    deploy = ["--no-prompt", "deploy", "--all", "--prefect-file", str(deploy_file)]
    done = subprocess.run(
        [sys.executable, "-m", "prefect", *deploy], env={**os.environ, **env}, text=True, capture_output=True
    )
    if done.returncode:
        raise ServiceError(f"deploying {deploy_file} failed:\n{done.stdout}{done.stderr}")
    log(f"Deployed {deploy_file}")


def stop(log: Callable[[str], None] = print) -> None:
    """Stops the worker with its runs, then the server, if `start` started them and they are alive."""
    for name in ("worker", "server"):
        _stop(name, log)


def check_server(port: int) -> None:
    """Raises ServiceError unless the server that `start` started runs at `port` and accepts this directory's secret."""
    server = running_record("server")
    if server is None or server["port"] != port:
        where = f"; it runs at port {server['port']}" if server else ""
        raise ServiceError(
            f"the Prefect server of this directory does not run at {ui_url(port)}{where}: start it with "
            f"`honeybee up --port {port}`"
        )
    remedy = "start it again with `honeybee down` and `honeybee up`"
    check_api(api_url(port), secret(), None, remedy)


def _keep(name: str, started: subprocess.Popen, port: int, ready: Callable[[], bool]) -> dict[str, Any]:
    """Records a started process, waits until it is ready, and returns its record."""
    record = {"pid": started.pid, "started": psutil.Process(started.pid).create_time(), "port": port}
    _record(name).write_text(json.dumps(record))
    try:
        processes.wait_until(ready, started, name, HOME / f"{name}.log")
    except BaseException:
        _record(name).unlink(missing_ok=True)
        raise
    return record


def _write_login(port: int) -> None:
    """Writes the page that opens the UI and logs in: its link has the secret, so that no command line shows it."""
    token = base64.b64encode(secret().encode()).decode()
    target = f"{ui_url(port)}{_LOGIN_PATH}#{token}"
    page = (
        f'<!doctype html><meta charset="utf-8"><title>Honeybee</title><script>location.replace("{target}");</script>\n'
    )
    write_private(LOGIN, page)


def _stop(name: str, log: Callable[[str], None]) -> None:
    record = running_record(name)
    if record:
        process = psutil.Process(record["pid"])
        log(f"Stopping the Prefect {name} (pid {process.pid}) …")
        family = process.children(recursive=True)
        # A worker's children are its runs: they end their ranks and report their final state to the server.
        processes.end(process.children())
        processes.end([process])
        processes.end([member for member in family if processes.is_alive(member)])
    _record(name).unlink(missing_ok=True)


def _record(name: str) -> Path:
    return HOME / f"{name}.json"


def running_record(name: str) -> dict[str, Any] | None:
    """Returns pid, start time and port of the "server" or "worker" that `start` started, or None if it is not alive."""
    try:
        record = json.loads(_record(name).read_text())
        process = psutil.Process(record["pid"])
        alive = process.create_time() == record["started"] and processes.is_alive(process)
    except (FileNotFoundError, psutil.NoSuchProcess):
        return None
    return record if alive else None


def _pool_exists(port: int) -> bool:
    """Whether the worker has registered its pool."""
    auth = httpx.BasicAuth(*secret().split(":", 1))
    with httpx.Client(trust_env=False, timeout=30, auth=auth) as client:
        answer = client.get(f"{api_url(port)}/work_pools/{WORK_POOL}")
    if answer.status_code not in (200, 404):
        raise ServiceError(f"{answer.url} answers with HTTP {answer.status_code}: see {HOME / 'server.log'}")
    return answer.status_code == 200
