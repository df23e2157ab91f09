"""HTTP routes: POST /v1/chat/completions, GET /v1/models, GET /health."""

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from model.generation.generate import End, Progress
from model.serving.batching import Closed
from model.serving.body import Bodies
from model.serving.errors import RequestError
from model.serving.protocol import AnswerMessage, Choice, Chunk, ChunkChoice, Completion, Delta, parse, usage
from model.serving.service import Answer, Service
from model.serving.web_guard import WebGuard

T = TypeVar("T")


def create_app(service: Service, loopback: bool, name: str = "") -> FastAPI:
    """Creates the application, which closes the service on shutdown. loopback, name: see WebGuard."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    # No documentation pages: they would load scripts from the network.
    app = FastAPI(title="Honeybee", lifespan=lifespan, openapi_url=None)
    origins = service.settings.origins
    if origins:
        allowed: dict[str, Any] = {"allow_methods": ["GET", "POST"], "allow_headers": ["*"]}
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_private_network=True, **allowed)
    app.add_middleware(WebGuard, loopback=loopback, name=name, origins=origins)  # before all others
    started, bodies = int(time.time()), Bodies(service.settings)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        model = {"id": service.settings.name, "object": "model", "created": started, "owned_by": "honeybee"}
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        (known,) = (await models())["data"]
        if name != known["id"]:
            message = f"unknown model {name[:80]!r}: this server provides only {known['id']!r}"
            raise RequestError(404, message, "model", "model_not_found")
        return known

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        try:
            begun = await _begin(service, bodies, request)
            return await until_disconnect(request, _complete(service.settings.name, *begun))
        except ClientDisconnect:
            return Response(status_code=499)  # the client is gone; the status only appears in the log

    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> Response:
        # The rest of a body that was not read is not waited for.
        headers = {"Connection": "close"} if error.status in (408, 413, 503) else None
        return JSONResponse(error.body(), error.status, headers)

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {request.url.path}: {error.detail}"
        return JSONResponse(RequestError(error.status_code, message).body(), error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return JSONResponse(_failure(error).body(), 500)

    return app


async def until_disconnect(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Returns the result of `work`, or cancels it and raises ClientDisconnect if the client disconnects.

    The request body must have been read before.
    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _begin(service: Service, bodies: Bodies, request: Request) -> tuple[Answer, bool, bool]:
    """Returns the answer, whether to stream it, and whether to stream its usage; none of them keeps the body."""

    async def begin(body: bytearray) -> tuple[Answer, bool, bool]:
        parsed = await service.in_thread(parse, body)
        options = parsed.stream_options
        return await service.begin(parsed), bool(parsed.stream), bool(options and options.include_usage)

    async with bodies.read(request) as body:
        return await until_disconnect(request, begin(body))


async def _complete(name: str, answer: Answer, stream: bool, with_usage: bool) -> Response:
    head: dict[str, Any] = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": name}
    streaming = False
    try:
        first = await answer.progress.get()  # an error before the first piece must not get status 200
        if isinstance(first, Exception):
            raise _failure(first)
        if stream:
            streaming = True
            return _Stream(answer, _chunks(answer, first, head, with_usage))
        text = ""
        progress: Progress = first
        while isinstance(progress, str):
            text += progress
            progress = await answer.progress.get()
        if isinstance(progress, Exception):
            raise _failure(progress)
        choice = Choice(message=AnswerMessage(content=text), finish_reason=_reason(progress))
        completion = Completion(**head, choices=[choice], usage=usage(answer.prompt_tokens, progress.tokens))
        return JSONResponse(completion.model_dump())
    finally:
        if not streaming:
            answer.cancelled.set()


class _Stream(StreamingResponse):
    """Server-sent events; cancels the answer when the response ends for any reason."""

    def __init__(self, answer: Answer, events: AsyncIterator[str]):
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answer.cancelled.set()


async def _chunks(answer: Answer, progress: Progress, head: dict[str, Any], with_usage: bool) -> AsyncIterator[str]:
    """Yields the events of an answer. progress: the first item of the answer, already received."""

    def event(choices: list[ChunkChoice], **more: Any) -> str:
        hidden = None if with_usage else {"usage"}
        chunk = Chunk(**head, choices=choices, **more)
        # A delta contains only new fields; all other fields are always present, even if they are null.
        content = chunk.model_dump(exclude=hidden)
        for choice, dumped in zip(choices, content["choices"], strict=True):
            dumped["delta"] = choice.delta.model_dump(exclude_none=True)
        return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"

    yield event([ChunkChoice(delta=Delta(role="assistant", content=""))])
    while isinstance(progress, str):
        yield event([ChunkChoice(delta=Delta(content=progress))])
        progress = await answer.progress.get()
    try:
        if isinstance(progress, Exception):
            raise _failure(progress)
        reason = _reason(progress)
    except RequestError as error:  # the status has already been sent; clients recognise an error event
        yield f"data: {json.dumps(error.body())}\n\n"
        return
    yield event([ChunkChoice(delta=Delta(), finish_reason=reason)])
    if with_usage:
        yield event([], usage=usage(answer.prompt_tokens, progress.tokens))
    yield "data: [DONE]\n\n"


def _reason(end: End) -> Any:
    if end.reason == "cancelled":  # by the server, since a client that has disconnected does not read this
        raise RequestError(503, "the server shut down before the answer was complete", None, "shutting_down")
    return end.reason


def _failure(error: Exception) -> RequestError:
    if isinstance(error, Closed):
        return RequestError(503, str(error), None, "shutting_down")
    return RequestError(500, f"generating the answer failed: {type(error).__name__}: {error}"[:500])
