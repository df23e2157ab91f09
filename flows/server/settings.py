"""The settings of Prefect, and the directory for databases, logs and pid files.

Prefect reads its settings from the environment when it is imported: call `configure` before importing it.
"""

import os
from pathlib import Path

import psutil

HOME = Path(".honeybee")  # relative to the working directory
HOST = "127.0.0.1"
PORT = 4200
WORK_POOL = "local"
OWNER = "HONEYBEE_OWNER"  # environment variable of a temporary server: `owner()` of the command that it serves

_QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_CLI_PROMPT": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",  # progress bars would clutter the log; every job logs its progress
}


def api_url(port: int) -> str:
    return f"http://{HOST}:{port}/api"


def ui_url(port: int) -> str:
    return f"http://{HOST}:{port}"


def environment(port: int | None) -> dict[str, str]:
    """Returns the settings of a server at `port` and its clients, or, for None, of a run with its own temporary server.

    The two use separate databases, because SQLite supports one server at a time.
    """
    home = (HOME / ("prefect" if port else "ephemeral")).absolute()
    home.mkdir(parents=True, exist_ok=True)  # without it the server cannot create its database
    where = {"PREFECT_HOME": str(home)}
    if port:
        where["PREFECT_API_URL"] = api_url(port)
    return {**_QUIET, **where}


def owner(process: psutil.Process) -> str:
    """Returns a unique identifier of a process: a pid can be reused, a pid with its start time cannot."""
    return f"{process.pid} {process.create_time()}"


def configure(port: int | None = None) -> None:
    """Applies `environment(port)` to this process's environment. Without a port, existing variables take precedence, so
    that PREFECT_API_URL can direct a run to any server."""
    os.environ.update(environment(port) | ({} if port else {**os.environ, OWNER: owner(psutil.Process())}))
