"""A Prefect server for the runs of one command, which ends with it."""

import atexit
import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from flows.server import process as processes
from flows.server import settings
from flows.server.reach import check_api
from flows.server.stopping import Stop, stops_promptly
from pipelines.core.hosts import bypass_proxies, is_loopback

END_SECONDS = 1.5  # between SIGTERM and SIGKILL


@contextlib.contextmanager
def prefect_server() -> Iterator[None]:
    """Directs the flows of this process to the server that PREFECT_API_URL names, or else to a temporary one.

    Raises ServiceError if that server cannot be used. When the process is asked to stop, or loses its temporary server,
    it exits within seconds (stopping.py).
    """
    settings.configure()
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_KEY, PREFECT_API_URL

    if url := PREFECT_API_URL.value():
        remedy = (
            "start that server, give its secret in PREFECT_API_AUTH_STRING if it has one, or unset PREFECT_API_URL to "
            "run on a temporary server"
        )
        check_api(url, PREFECT_API_AUTH_STRING.value(), PREFECT_API_KEY.value(), remedy)
        if is_loopback(host := urlsplit(url).hostname or ""):
            bypass_proxies(host)
        with stops_promptly():
            yield
    else:
        server = contextlib.ExitStack()
        process = server.enter_context(temporary_server())
        atexit.register(server.close)  # Prefect sends its last events at exit, in functions that it registers later
        with stops_promptly() as stop, _watched(process, stop):
            yield


@contextlib.contextmanager
def temporary_server() -> Iterator[subprocess.Popen]:
    """Runs a server with its own secret on a free port, with its log in PREFECT_HOME, for the flows of this process."""
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    auth, log = settings.new_secret(), server_log()
    listening = processes.open_socket(0)
    port = listening.getsockname()[1]
    process = processes.start_server(listening, auth, {}, log, temporary=True)
    processes.wait_until(lambda: processes.answers(port), process, "server", log)
    try:
        with temporary_settings({PREFECT_API_URL: settings.api_url(port), PREFECT_API_AUTH_STRING: auth}):
            yield process
    finally:
        processes.end_popen(process, END_SECONDS)


def server_log() -> Path:
    return Path(os.environ["PREFECT_HOME"]) / "server.log"


@contextlib.contextmanager
def _watched(process: subprocess.Popen, stop: Stop) -> Iterator[None]:
    """Stops this process if the server ends while the block runs: every request would only be tried again."""
    done = threading.Event()

    def watch() -> None:
        process.wait()
        if not done.is_set():
            how = f"the temporary Prefect server ended (exit code {process.returncode}, its log is {server_log()})"
            stop.lost(f"{how}: run it again; what is complete is reused")

    threading.Thread(target=watch, name="server", daemon=True).start()
    try:
        yield
    finally:
        done.set()
