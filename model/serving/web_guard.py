"""Keeps web pages away from the server: a page that a browser shows can send requests to every address of its user."""

import ipaddress
import re
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from model.serving.errors import RequestError

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?")


class WebGuard:
    """Refuses requests of web pages, except for pages from the allowed origins.

    loopback: the server listens on a loopback address, so that its Host header must be one, or `name`, under which the
    server was started; a page cannot fake that by resolving its own domain to this address (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, loopback: bool, name: str = "", origins: Sequence[str] = ()):
        self._app, self._loopback, self._name, self._origins = app, loopback, name.lower(), frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (error := self._refusal(scope["method"], Headers(scope=scope))) is not None:
            response = JSONResponse(error.body(), error.status, {"Connection": "close"})
            await response(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, method: str, headers: Headers) -> RequestError | None:
        host = headers.get("host", "")
        if self._loopback and not self._is_own(host):
            message = f"the Host header {host[:80]!r} is not an address of this server, such as 127.0.0.1 or localhost"
            return RequestError(400, message, None, "invalid_host")
        for origin in headers.getlist("origin"):
            if origin not in self._origins and not (
                self._is_fixed(host) and origin.lower() == f"http://{host.lower()}"
            ):
                message = (
                    f"requests of web pages from {origin[:80]!r} are not allowed: start the server with --allow-origin"
                )
                return RequestError(403, message, None, "invalid_origin")
        if method == "POST":
            kind = headers.get("content-type", "")
            if kind.partition(";")[0].strip().lower() != "application/json":
                message = f"the Content-Type must be application/json, not {kind[:80]!r}"
                return RequestError(415, message, None, "unsupported_content_type")
            if (encoding := headers.get("content-encoding", "identity")).lower() != "identity":
                message = f"the Content-Encoding {encoding[:80]!r} is not supported: send the body uncompressed"
                return RequestError(415, message, None, "unsupported_content_type")
        return None

    def _is_own(self, host: str) -> bool:
        found = _HOST.fullmatch(host)
        return found is not None and (is_loopback(found[1]) or found[1].lower() == self._name)

    def _is_fixed(self, host: str) -> bool:
        """Returns whether a Host header cannot be a domain that a page resolves to this address."""
        found = _HOST.fullmatch(host)
        return found is not None and (self._is_own(host) or _address(found[1]) is not None)


def is_loopback(host: str) -> bool:
    """Returns whether a name or an address, with or without brackets, is a loopback address."""
    address = _address(host)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return host.lower().removesuffix(".") == "localhost" if address is None else address.is_loopback


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]").partition("%")[0])
    except ValueError:
        return None


def checked_origin(origin: str) -> str:
    """Returns an origin as browsers write it. Raises ValueError for one that would not name a single site."""
    written = origin.lower().removesuffix("/")
    for scheme, port in (("http://", ":80"), ("https://", ":443")):
        if written.startswith(scheme):
            written = written.removesuffix(port)
    if not _ORIGIN.fullmatch(written):
        raise ValueError(f"--allow-origin {origin}: give the origin of one site, such as https://app.example.org")
    return written
