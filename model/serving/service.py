"""Turns parsed requests into streamed answers of the model."""

import asyncio
import contextlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from threading import Event, Lock
from typing import Any

import torch
from jinja2 import TemplateError

from model.generation.generate import Progress, PromptError, PromptRow, context_length, encode, generate
from model.generation.sampling import Sampling
from model.serving.batching import Batcher, Busy, Closed
from model.serving.content import ImageReference, conversation
from model.serving.errors import RequestError
from model.serving.images import check_total_pixels, decode_image, image_bytes
from model.serving.protocol import ChatRequest
from model.serving.settings import Settings
from pipelines.tokens.plain_text import PlainTextError

DEFAULT_MAX_TOKENS = 512  # used if a request sets no limit
MAX_PARTS = 10_000  # bounds the messages and parts if the model has no context limit


@dataclass
class Answer:
    """A running answer. progress: pieces of text, then an End or an exception. cancelled: set it to stop the answer."""

    prompt_tokens: int
    progress: "asyncio.Queue[Progress]"
    cancelled: Event


class Service:
    """The model with its request queue and worker threads for preprocessing."""

    def __init__(self, model: Any, processor: Any, settings: Settings):
        self.settings, self.processor, self.context = settings, processor, context_length(model)
        longest = max(map(len, processor.tokenizer.get_vocab()))  # characters of the longest token
        # Tokenising megabytes takes a minute. Allow four times what can fit, since a tokenizer may drop characters.
        self._max_characters = None if self.context is None else 4 * longest * self.context
        self._batcher = Batcher(partial(generate, model, processor), settings.max_batch)
        self._threads = ThreadPoolExecutor(min(4, os.cpu_count() or 1), "requests")
        self._tokenizing = Lock()  # fast tokenizers are not thread-safe

    def close(self) -> None:
        """Cancels running answers and waits until they have ended."""
        self._batcher.close()
        self._threads.shutdown(cancel_futures=True)

    async def in_thread(self, function: Any, *args: Any) -> Any:
        """Runs a slow function in a worker thread, without blocking the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)

    async def begin(self, request: ChatRequest) -> Answer:
        """Queues a request. Raises RequestError: 400 (invalid), 404 (unknown model), 503 (too many are waiting)."""
        if request.model != self.settings.name:
            message = f"unknown model {request.model[:80]!r}: this server provides only {self.settings.name!r}"
            raise RequestError(404, message, "model", "model_not_found")
        messages, references = conversation(request.messages, self.settings.max_images)
        pieces = sum(1 + len(message.content) for message in request.messages)
        if pieces > 4 * (self.context or MAX_PARTS):  # each has at least one token, except for empty texts
            raise _too_long(f"the messages have {pieces} parts", self.context)
        characters = sum(len(part.text or "") for message in request.messages for part in message.content)
        if self._max_characters is not None and characters > self._max_characters:
            raise _too_long(f"the messages have {characters} characters", self.context)
        prompt = await self.in_thread(self._encode, messages)
        longest = DEFAULT_MAX_TOKENS if request.longest is None else request.longest
        if self.context is not None:
            if len(prompt) >= self.context:
                raise _too_long(f"the prompt has {len(prompt)} tokens, including visual tokens", self.context)
            longest = min(longest, self.context - len(prompt))
        pixels = await self._pixels(references)
        loop, queue, cancelled = asyncio.get_running_loop(), asyncio.Queue[Progress](), Event()

        def report(progress: Progress) -> None:  # runs in the generating thread
            with contextlib.suppress(RuntimeError):  # the event loop is closed, so that no client is left
                loop.call_soon_threadsafe(queue.put_nowait, progress)

        row = PromptRow(
            prompt,
            torch.cat(pixels) if pixels else None,
            longest,
            report,
            Sampling(request.temperature or 0.0, 1.0 if request.top_p is None else request.top_p, request.seed),
            request.stop or (),
            cancelled,
        )
        try:
            self._batcher.submit(row)
        except (Busy, Closed) as error:
            raise RequestError(503, str(error), None, "overloaded") from None
        return Answer(len(prompt), queue, cancelled)

    def _encode(self, messages: list[dict[str, Any]]) -> list[int]:
        try:
            with self._tokenizing:
                return encode(self.processor, messages)
        except TemplateError as error:
            raise RequestError(400, f"the model's chat template rejects the messages: {error}", "messages") from None
        except (PromptError, PlainTextError) as error:
            raise RequestError(400, f"the messages cannot be encoded: {error}", "messages") from None

    async def _pixels(self, references: Sequence[ImageReference]) -> list[torch.Tensor]:
        """Loads and preprocesses each image to (1, 3, S, S)."""
        settings = self.settings
        loading = (image_bytes(reference, settings.allow_urls, settings.max_upload) for reference in references)
        files = [await self.in_thread(data) for data in await asyncio.gather(*loading)]
        await self.in_thread(check_total_pixels, files)

        def preprocess(reference: ImageReference, data: bytes) -> torch.Tensor:
            return self.processor.preprocess([decode_image(reference, data)])

        pairs = zip(references, files, strict=True)
        return list(await asyncio.gather(*(self.in_thread(preprocess, *pair) for pair in pairs)))


def _too_long(what: str, context: int | None) -> RequestError:
    message = f"{what}, but the model's context is {context} tokens: no room is left for an answer"
    return RequestError(400, message, "messages", "context_length_exceeded")
