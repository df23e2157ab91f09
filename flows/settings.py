"""Where this project keeps what a run needs besides its results, and how Prefect is set up.

Prefect reads its settings from the environment at import: call `configure` before importing it.
"""

import os
from pathlib import Path

import psutil

HOME = Path(".honeybee")  # in the directory where commands run: databases, logs and pid files
HOST = "127.0.0.1"
PORT = 4200
WORK_POOL = "local"
OWNER = "HONEYBEE_OWNER"  # in the environment of a short-lived server: the command that it serves, as `owner()` says it

_QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_CLI_PROMPT": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",  # bars that redraw themselves are no log lines; every job logs its progress
}


def api_url(port: int) -> str:
    return f"http://{HOST}:{port}/api"


def ui_url(port: int) -> str:
    return f"http://{HOST}:{port}"


def environment(port: int | None) -> dict[str, str]:
    """The settings of a server at `port` and its clients; None: of a run that brings its own, short-lived server.

    The two keep separate databases, since SQLite serves one server at a time.
    """
    home = (HOME / ("prefect" if port else "ephemeral")).absolute()
    home.mkdir(parents=True, exist_ok=True)  # Prefect waits in vain for a server that cannot make its database
    where = {"PREFECT_HOME": str(home)}
    if port:
        where["PREFECT_API_URL"] = api_url(port)
    return {**_QUIET, **where}


def owner(process: psutil.Process) -> str:
    """A process as no other will ever be called: a pid is given away again, a pid with its start time is not."""
    return f"{process.pid} {process.create_time()}"


def configure(port: int | None = None) -> None:
    """Puts `environment(port)` into this process's environment. Without a port, what is already set there wins, so
    that a run can report to a server of one's own by PREFECT_API_URL."""
    os.environ.update(environment(port) | ({} if port else {**os.environ, OWNER: owner(psutil.Process())}))
