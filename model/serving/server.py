"""Runs the HTTP server for a model until it receives a signal."""

import contextlib
import errno
import ipaddress
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn

from model.check_directory import check_model
from model.serving.connections import LimitedConnection
from model.serving.settings import Settings
from model.serving.web_guard import is_loopback

SHUTDOWN_SECONDS = 10  # seconds that running answers have to finish on shutdown


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
        app = create_app(service, is_loopback(listener.getsockname()[0]), host)
        server = uvicorn.Server(config_of(app, log_level="info", timeout_graceful_shutdown=SHUTDOWN_SECONDS))
        with contextlib.suppress(KeyboardInterrupt, SystemExit):  # uvicorn shuts down, then re-raises the signal
            server.run(sockets=[listener])


def config_of(app: Any, connection: type[LimitedConnection] = LimitedConnection, **options: Any) -> uvicorn.Config:
    """Returns uvicorn's configuration with limits on connections, and without WebSockets, which no route uses."""
    return uvicorn.Config(app, http=connection, ws="none", **options)


def bind(host: str, port: int) -> socket.socket:
    """Opens a listening socket. Raises ServeError, naming the address."""
    try:
        if not host:
            raise OSError("--host is empty")
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        found = ipaddress.ip_address(str(address[0]).partition("%")[0])
        if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped:
            family, address = socket.AF_INET, (str(found.ipv4_mapped), port)
        return socket.create_server(address, family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ServeError(f"port {port} on {host} is already in use: choose another one with --port") from None
        raise ServeError(f"cannot listen on port {port} on {host}: {error.strerror or error}") from None
