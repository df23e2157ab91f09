"""`python -m flows.server.serve SOCKET [PARENT]`: a Prefect server on a listening socket that its parent has opened.

It does what `prefect server start` does, and in addition refuses requests of other web pages, serves the page that logs
its owner in, and, if PARENT (a pid) is given, is a temporary server without a UI that ends with that process.
"""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import uvicorn
from prefect.server.api.server import create_app

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOGIN_PATH = "/honeybee/login"
_NAMES = {"127.0.0.1", "localhost"}  # of this server; any port, because it may be reached through a tunnel
# The secret is in the fragment of the URL, which is never sent; the UI reads it from its local storage.
_LOGIN_PAGE = b"""<!doctype html><meta charset="utf-8"><title>Honeybee</title><script>
if (location.hash.length > 1) localStorage.setItem("prefect-password", location.hash.slice(1));
location.replace("/");
</script>"""
# For the UI: its own scripts only (no link or tag in a text runs one), and no request to anyone else.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:;"
    " font-src 'self' data:; worker-src 'self' blob:; connect-src 'self' data: blob: ws://{host}; object-src 'none'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
WATCH_SECONDS = 0.5
SHUTDOWN_SECONDS = 3


class Door:
    """Refuses requests with a foreign Host (DNS rebinding) or Origin (another web page) before Prefect, which asks for
    the secret, sees them; and confines the UI, which keeps the secret, to its own scripts and server."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        headers = {name: [value for key, value in scope["headers"] if key == name] for name in (b"host", b"origin")}
        problem = _problem(*([value.decode("latin-1") for value in values] for values in headers.values()))
        if scope["type"] == "websocket":
            if problem:  # closing before accepting is answered with status 403
                return await send({"type": "websocket.close", "code": 1008, "reason": problem})
            return await self._app(scope, receive, send)
        if problem:
            return await _answer(send, 403, b"text/plain; charset=utf-8", problem.encode())
        if scope["path"] == LOGIN_PATH:
            return await _answer(send, 200, b"text/html; charset=utf-8", _LOGIN_PAGE)
        policy = _POLICY.format(host=headers[b"host"][0].decode("latin-1")).encode()

        async def add_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"content-security-policy", policy)]}
            await send(message)

        await self._app(scope, receive, add_policy)


def _problem(hosts: list[str], origins: list[str]) -> str | None:
    """Returns why a request with these headers is refused, or None."""
    if len(hosts) != 1 or (hosts[0].rpartition(":")[0] not in _NAMES and hosts[0] not in _NAMES):
        return "The Host header does not name this machine."
    if any(origin != f"http://{hosts[0]}" for origin in origins):
        return "Requests of other web pages are refused."
    return None


async def _answer(send: Send, status: int, kind: bytes, body: bytes) -> None:
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode()), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def end_with(parent: int) -> None:
    """Ends this process soon after the process `parent`, its parent, has ended in whatever way."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(2 * SHUTDOWN_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def main(listening: int, parent: int | None) -> None:
    if parent is not None:
        end_with(parent)
    config = uvicorn.Config(
        Door(create_app(ephemeral=parent is not None, final=True)),
        log_level="warning",
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    uvicorn.Server(config).run([socket.socket(fileno=listening)])


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
