"""Limits on connections: their number, and how long a client may take to send headers or read an answer."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

_CLOSE = b"connection: close\r\ncontent-length: 0\r\n\r\n"


class LimitedConnection(H11Protocol):
    """A connection with limits that uvicorn does not have. Those on bodies are in model/serving/body.py.

    A connection waits if it has no request yet, or no further one. If there are too many connections, the one that has
    waited longest is closed, so that clients that never send a request do not lock others out.
    """

    max_connections = 256
    header_seconds = 10.0  # for the headers of a request, from the connection or the end of the previous answer
    write_seconds = 60.0  # for a client that does not read its answer

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._header_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._waits_since = 0.0

    @property
    def _waits(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()
        if len(self.connections) > self.max_connections:
            others = [other for other in self.connections if isinstance(other, LimitedConnection) and other._waits]
            oldest = min(others, key=lambda other: other._waits_since)  # this connection waits as well
            oldest._refuse(b"503 Service Unavailable")
            self.connections.discard(oldest)

    def handle_events(self) -> None:
        super().handle_events()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._header_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        self._write_timer = self.loop.call_later(self.write_seconds, self.transport.abort)
        super().pause_writing()

    def resume_writing(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
        super().resume_writing()

    def _watch(self) -> None:
        """Starts the timer when the connection begins to wait, and stops it when a request has arrived."""
        if not self._waits and self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None
        elif self._waits and self._header_timer is None and not self.transport.is_closing():
            self._waits_since = self.loop.time()
            self._header_timer = self.loop.call_later(self.header_seconds, self._refuse, b"408 Request Timeout")

    def _refuse(self, status: bytes) -> None:
        if not self.transport.is_closing():
            if self.cycle is None:  # else the end of the body of an answered request may still be on its way
                self.transport.write(b"HTTP/1.1 " + status + b"\r\n" + _CLOSE)
            self.transport.close()
