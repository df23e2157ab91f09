"""Reads the bodies of requests within limits on their size, their time and the memory of all of them together."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator

from starlette.requests import Request

from model.serving.errors import RequestError
from model.serving.settings import Settings


class Bodies:
    """The bodies that are in memory. A body counts from its first byte until its request has been preprocessed."""

    def __init__(self, settings: Settings):
        self._settings, self._bytes = settings, 0

    @contextlib.asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytearray]:
        """Yields the body. Raises RequestError: 413 (too large, with or without a Content-Length header), 408 (too
        slow), 503 (too many bodies); and ClientDisconnect."""
        settings, body = self._settings, bytearray()
        limit = settings.max_upload
        too_large = RequestError(413, f"the request is larger than {limit} bytes (--max-upload-mib)", None, "too_large")
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and (len(declared) > 18 or int(declared) > limit):
            raise too_large
        counted = 0
        try:
            async with contextlib.aclosing(self._pieces(request)) as pieces:
                async for piece in pieces:
                    if len(body) + len(piece) > limit:
                        raise too_large
                    if self._bytes + len(piece) > settings.max_bodies:
                        message = "the server is receiving too much data at once: try again later"
                        raise RequestError(503, message, None, "overloaded")
                    counted += len(piece)
                    self._bytes += len(piece)
                    body += piece
            yield body
        finally:
            self._bytes -= counted

    async def _pieces(self, request: Request) -> AsyncGenerator[bytes, None]:
        settings, stream = self._settings, request.stream()
        loop = asyncio.get_running_loop()
        end = loop.time() + settings.body_seconds
        while True:
            try:
                seconds = min(settings.stall_seconds, end - loop.time())
                piece = await asyncio.wait_for(anext(stream), max(0.0, seconds))
            except StopAsyncIteration:
                return
            except TimeoutError:
                message = (
                    f"the body did not arrive in time: at most {settings.body_seconds:g} seconds in all, "
                    f"and {settings.stall_seconds:g} seconds without a byte"
                )
                raise RequestError(408, message, None, "timeout") from None
            yield piece
