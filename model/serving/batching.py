"""Requests that arrive together are answered in one batch, by one thread; later ones wait until it has ended."""

import logging
import queue
import time
from collections.abc import Callable, Sequence
from threading import Thread

from model.generation import End, Row

LINGER = 0.005  # seconds that the first of a batch waits for company
MAX_WAITING = 256  # more are refused, so that their pictures do not fill the memory
log = logging.getLogger(__name__)


class Busy(Exception):
    """Too many requests wait."""


class Closed(Exception):
    """The server ends."""


class Batcher:
    """A queue of rows and the thread that answers them."""

    def __init__(self, answer: Callable[[Sequence[Row]], None], max_batch: int):
        """answer: generates for the rows and reports to each; what it raises is reported to those without an end."""
        self._answer, self._max_batch = answer, max_batch
        self._waiting: queue.Queue[Row | None] = queue.Queue()
        self._running: Sequence[Row] = ()
        self._closed = False
        self._thread = Thread(target=self._work, name="generation", daemon=True)
        self._thread.start()

    def submit(self, row: Row) -> None:
        """Raises Busy, Closed."""
        if self._closed:
            raise Closed("the server ends")
        if self._waiting.qsize() >= MAX_WAITING:
            raise Busy(f"{MAX_WAITING} requests wait already: try again later")
        self._waiting.put(row)

    def close(self) -> None:
        """Ends running answers where they are, refuses waiting ones, and waits for the thread."""
        self._closed = True
        for row in self._running:
            row.cancelled.set()
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        while rows := self._next():
            self._running = rows
            if self._closed:
                error: Exception = Closed("the server ends")
            else:
                error = RuntimeError("the generation ended without an end for this row")
                try:
                    self._answer(rows)
                except Exception as raised:  # whatever it is, the next batch may be well
                    log.exception("a batch of %d requests failed", len(rows))
                    error = raised
            for row in rows:
                row.finish(error)
            self._running = ()
        while not self._waiting.empty():
            if left := self._waiting.get():
                left.finish(Closed("the server ends"))

    def _next(self) -> list[Row]:
        """The rows of the next batch; none when the queue is closed."""
        rows: list[Row] = []
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
                until = time.monotonic() + LINGER
            rows.append(row)
        return rows
