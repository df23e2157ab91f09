"""Batches concurrent requests: one thread answers one batch at a time, and later requests wait in a queue."""

import logging
import queue
import time
from collections.abc import Callable, Sequence
from threading import Thread

from model.generation.generate import End, PromptRow

BATCH_WAIT_SECONDS = 0.005  # seconds that the first request of a batch waits for others
MAX_WAITING = 256  # further requests are rejected, so that their images do not fill the memory
log = logging.getLogger(__name__)


class Busy(Exception):
    """Raised if too many requests are waiting."""


class Closed(Exception):
    """Raised if the server is shutting down."""


class Batcher:
    """A queue of rows and the thread that answers them."""

    def __init__(self, answer: Callable[[Sequence[PromptRow]], None], max_batch: int):
        """answer: generates and reports the answers of the rows; its exceptions are reported to unfinished rows."""
        self._answer, self._max_batch = answer, max_batch
        self._waiting: queue.Queue[PromptRow | None] = queue.Queue()
        self._running: Sequence[PromptRow] = ()
        self._closed = False
        self._thread = Thread(target=self._work, name="generation", daemon=True)
        self._thread.start()

    def submit(self, row: PromptRow) -> None:
        """Queues a row. Raises Busy if the queue is full, Closed if the server is shutting down."""
        if self._closed:
            raise Closed("the server is shutting down")
        if self._waiting.qsize() >= MAX_WAITING:
            raise Busy(f"{MAX_WAITING} requests are already waiting: try again later")
        self._waiting.put(row)

    def close(self) -> None:
        """Cancels running answers, rejects waiting requests and waits for the thread."""
        self._closed = True
        for row in self._running:
            row.cancelled.set()
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        while rows := self._next():
            self._running = rows
            if self._closed:
                for row in rows:
                    row.finish(Closed("the server is shutting down"))
            else:
                for row in self._try(rows):  # one bad row must not fail the others
                    self._try([row])
            self._running = ()
        while not self._waiting.empty():
            if left := self._waiting.get():
                left.finish(Closed("the server is shutting down"))

    def _try(self, rows: Sequence[PromptRow]) -> list[PromptRow]:
        """Answers a batch. If that fails, returns the rows to answer alone, which are those whose clients have received
        no text yet; the other rows get the error."""
        error: Exception = RuntimeError("the generation returned without finishing this row")
        try:
            self._answer(rows)
        except Exception as raised:  # keep the thread alive: the next batch may succeed
            log.exception("a batch of %d requests failed", len(rows))
            error = raised.with_traceback(None)  # the traceback keeps the tensors of the batch
        alone = [row for row in rows if len(rows) > 1 and not row.started and not row.ended]
        for row in rows:
            if row not in alone:
                row.finish(error)
        return alone

    def _next(self) -> list[PromptRow]:
        """Returns the rows of the next batch, or an empty list when the queue is closed."""
        rows: list[PromptRow] = []
        until = 0.0
        while len(rows) < self._max_batch:
            try:
                row = self._waiting.get(timeout=max(0.0, until - time.monotonic()) if rows else None)
            except queue.Empty:
                break
            if row is None:
                if rows:
                    self._waiting.put(None)  # for the next call
                break
            if row.cancelled.is_set():
                row.finish(End("cancelled", 0))
                continue
            if not rows:
                until = time.monotonic() + BATCH_WAIT_SECONDS
            rows.append(row)
        return rows
