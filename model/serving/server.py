"""Runs the HTTP server for a model until it receives a signal."""

import contextlib
import errno
import socket
from collections.abc import Callable
from pathlib import Path

import uvicorn

from model.check_directory import check_model
from model.serving.settings import Settings

SHUTDOWN_SECONDS = 10  # seconds that running answers have to finish on shutdown
LOOPBACK_HOSTS = ("127.0.0.1", "localhost")  # only these names are accepted, to prevent DNS rebinding by web pages


class ServeError(ValueError):
    """Raised if the server cannot listen on the address."""


def serve(directory: Path, host: str, port: int, settings: Settings, say: Callable[[str], object]) -> None:
    """Loads a model and answers requests until SIGTERM or SIGINT. port: 0 selects a free port. say: receives a line
    with the address. Raises ModelError, and ServeError before the model is loaded."""
    check_model(directory)
    with bind(host, port) as listener:
        # They import torch, which takes seconds: an address in use is reported before.
        from model.generation.generate import load
        from model.serving.app import create_app
        from model.serving.service import Service

        service = Service(*load(directory), settings)
        address = f"[{host}]" if ":" in host else host
        say(f"serving {directory} as {settings.name!r} on http://{address}:{listener.getsockname()[1]}/v1")
        app = create_app(service, LOOPBACK_HOSTS if host in LOOPBACK_HOSTS else ("*",))
        config = uvicorn.Config(app, log_level="info", timeout_graceful_shutdown=SHUTDOWN_SECONDS)
        server = uvicorn.Server(config)
        with contextlib.suppress(KeyboardInterrupt, SystemExit):  # uvicorn shuts down, then re-raises the signal
            server.run(sockets=[listener])


def bind(host: str, port: int) -> socket.socket:
    """Opens a listening socket. Raises ServeError, naming the address."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ServeError(f"port {port} on {host} is already in use: choose another one with --port") from None
        raise ServeError(f"cannot listen on port {port} on {host}: {error.strerror or error}") from None
