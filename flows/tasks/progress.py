"""Shows a progress bar in Prefect's UI while a stage trains, by following its metrics.jsonl."""

import contextlib
import contextvars
import json
import os
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from flows.report.artifacts import artifact_key
from flows.runs.workspace import Log

EVERY = 5.0  # seconds between updates
TAIL = 1 << 16  # bytes read from the end of metrics.jsonl; longer than any line
PATIENCE = 10.0  # seconds to wait at the end for a server that does not answer


@contextlib.contextmanager
def shown(recipe: str, stage: str, metrics: Path, log: Log, every: float = EVERY) -> Iterator[None]:
    """Keeps one progress artifact up to date from its own thread, so that a slow server does not delay the ranks'
    output. An unreachable server is logged once and retried at the next update; it does not fail the run."""
    stop = threading.Event()
    follower = _Follower(artifact_key(recipe, f"{stage} progress"), stage, metrics, log)
    context = contextvars.copy_context()  # tells Prefect which task run the artifact belongs to
    thread = threading.Thread(target=context.run, args=(follower.follow, stop, every), name="progress", daemon=True)
    thread.start()
    patience = 0.0  # a run that fails or is stopped does not wait for the last update
    try:
        yield
        patience = PATIENCE
    finally:
        stop.set()
        thread.join(patience)


class _Follower:
    def __init__(self, key: str, stage: str, metrics: Path, log: Log):
        self.key, self.stage, self.metrics, self.log = key, stage, metrics, log
        self._artifact: UUID | None = None
        self._shown: tuple[float, str] | None = None
        self._complained = False

    def follow(self, stop: threading.Event, every: float) -> None:
        """Updates the artifact immediately, then every `every` seconds, and a last time when `stop` is set."""
        self.look()
        while not stop.wait(every):
            self.look()
        self.look()

    def look(self) -> None:
        news = _describe(self.stage, last_line(self.metrics))
        if news == self._shown:
            return
        progress, description = news
        try:
            if self._artifact is None:
                made = create_progress_artifact(progress, key=self.key, description=description)
                self._artifact = cast(UUID, made)  # not a coroutine: this thread has no event loop
            else:
                update_progress_artifact(self._artifact, progress, description=description)
        except Exception as error:  # no failure of the progress bar may end a training
            if not self._complained:
                self.log(f"cannot update the progress bar of {self.stage}: {type(error).__name__}: {error}")
            self._complained = True
        else:
            self._shown = news


def last_line(metrics: Path) -> dict[str, Any] | None:
    """Returns the last complete line of a metrics.jsonl, or None if there is none yet."""
    try:
        with metrics.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            lines = file.read().split(b"\n")[:-1]  # what follows the last newline is incomplete
    except FileNotFoundError:
        return None
    return json.loads(lines[-1]) if lines else None


def _describe(stage: str, line: dict[str, Any] | None) -> tuple[float, str]:
    """Returns the progress in percent and its description."""
    if line is None:
        return 0.0, f"{stage}: starting"
    left = timedelta(seconds=round(line["seconds_left"]))
    return (
        100 * line["step"] / line["steps"],
        f"{stage}: step {line['step']:,} of {line['steps']:,}, loss {line['loss']:.4f}, {left} left",
    )
