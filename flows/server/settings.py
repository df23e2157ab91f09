"""The settings of Prefect, and the directory for databases, logs, pid files and the secret.

Prefect reads its settings from the environment when it is imported: call `configure` before importing it.
"""

import contextlib
import os
import secrets
from pathlib import Path

from pipelines.core.files import atomic_file, temporary_path

HOME = Path(".honeybee")  # relative to the working directory
HOST = "127.0.0.1"
PORT = 4200
WORK_POOL = "local"
PROFILE = "honeybee"  # the profile of Prefect's command, in PREFECT_HOME
PREFECT_HOME = HOME / "prefect"
SECRET = HOME / "auth"
LOGIN = HOME / "ui.html"

_QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_CLI_PROMPT": "false",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",  # progress bars would clutter the log; every job logs its progress
}


def api_url(port: int) -> str:
    return f"http://{HOST}:{port}/api"


def ui_url(port: int) -> str:
    return f"http://{HOST}:{port}"


def new_secret() -> str:
    """Returns a random value for PREFECT_SERVER_API_AUTH_STRING, in the form that Prefect wants: user:password."""
    return f"honeybee:{secrets.token_urlsafe(32)}"


def secret() -> str:
    """Returns the secret of this directory's server, after writing it to SECRET if there is none yet."""
    private_home()
    if not SECRET.is_file():
        partial = write_private(temporary_path(SECRET), new_secret() + "\n")
        with contextlib.suppress(FileExistsError):  # another process was first: both use its secret
            SECRET.hardlink_to(partial)
        partial.unlink()
    SECRET.chmod(0o600)  # a copy of the directory may have lost the mode
    return SECRET.read_text().strip()


def write_private(path: Path, text: str) -> Path:
    """Writes a file that only its owner can read, atomically."""
    with atomic_file(path) as partial:
        partial.touch(mode=0o600)
        partial.write_text(text)
    return path


def private_home() -> Path:
    """Returns HOME, readable only by its owner: logs and databases hold what the runs print and Prefect's blocks."""
    HOME.mkdir(mode=0o700, exist_ok=True)
    HOME.chmod(0o700)
    return HOME


def environment(port: int | None) -> dict[str, str]:
    """Returns the settings of the clients of the server at `port`, or, for None, of a run with its own server.

    The two use separate databases, because SQLite supports one server at a time.
    """
    home = (PREFECT_HOME if port else private_home() / "ephemeral").absolute()
    where = {"PREFECT_HOME": str(home)}
    if port:
        where |= {
            "PREFECT_API_URL": api_url(port),
            "PREFECT_API_AUTH_STRING": secret(),
            "PREFECT_PROFILE": PROFILE,
        }
        write_profile(port)
    home.mkdir(parents=True, exist_ok=True)  # without it the server cannot create its database
    return {**_QUIET, **where}


def server_environment(auth: str, port: int) -> dict[str, str]:
    """Returns the settings of a server: every request needs `auth`, and no page but its own UI may read an answer."""
    return {
        "PREFECT_SERVER_API_AUTH_STRING": auth,
        "PREFECT_SERVER_API_HOST": HOST,
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": ui_url(port),
        "PREFECT_SERVER_UI_API_URL": "/api",  # the UI asks the address that it was opened at, also through a tunnel
    }


def write_profile(port: int) -> None:
    """Writes the profile that gives Prefect's own command the server's address and secret: with
    PREFECT_HOME=.honeybee/prefect it needs no other setting."""
    lines = [f'PREFECT_API_URL = "{api_url(port)}"', f'PREFECT_API_AUTH_STRING = "{secret()}"']
    text = "\n".join([f'active = "{PROFILE}"', "", f"[profiles.{PROFILE}]", *lines, ""])
    PREFECT_HOME.mkdir(exist_ok=True)
    write_private(PREFECT_HOME / "profiles.toml", text)


def configure(port: int | None = None) -> None:
    """Applies `environment(port)` to this process's environment. Without a port, existing variables take precedence, so
    that PREFECT_API_URL can direct a run to any server."""
    os.environ.update(environment(port) | ({} if port else {**os.environ}))
