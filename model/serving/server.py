"""Serves a model until it is asked to end."""

import contextlib
import errno
import socket
from collections.abc import Callable
from pathlib import Path

import uvicorn

from model.directory import check_model
from model.serving.app import create_app
from model.serving.service import Service, Settings

GRACE = 10  # seconds that running answers have to end
LOCAL = ("127.0.0.1", "localhost")  # a web page may give its own name this address; its requests are refused


class ServeError(ValueError):
    """An address that cannot be served at."""


def serve(directory: Path, host: str, port: int, settings: Settings, say: Callable[[str], object]) -> None:
    """Loads a model and answers requests until SIGTERM or SIGINT. port: 0 takes a free one, and says it.

    Raises ModelError and, before the model is loaded, ServeError.
    """
    check_model(directory)
    with bind(host, port) as listener:
        from model.generation import load

        service = Service(*load(directory), settings)
        address = f"[{host}]" if ":" in host else host
        say(f"{directory} is served as {settings.name!r} on http://{address}:{listener.getsockname()[1]}/v1")
        app = create_app(service, LOCAL if host in LOCAL else ("*",))
        config = uvicorn.Config(app, log_level="info", timeout_graceful_shutdown=GRACE)
        server = uvicorn.Server(config)
        with contextlib.suppress(KeyboardInterrupt, SystemExit):  # uvicorn ends well, then raises the signal again
            server.run(sockets=[listener])


def bind(host: str, port: int) -> socket.socket:
    """Raises ServeError, naming the address."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ServeError(f"port {port} of {host} is in use: choose another by --port") from None
        raise ServeError(f"cannot listen on port {port} of {host}: {error.strerror or error}") from None
