"""A progress bar in Prefect's UI while a stage trains, from the lines of its metrics.jsonl as they come."""

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

from flows.artifacts import artifact_key
from flows.workspace import Log

EVERY = 5.0  # seconds between looks
TAIL = 1 << 16  # bytes; the last line of a file of metrics is shorter
PATIENCE = 10.0  # seconds at the end for a server that does not answer


@contextlib.contextmanager
def shown(recipe: str, stage: str, metrics: Path, log: Log, every: float = EVERY) -> Iterator[None]:
    """One artifact, kept up to date by a thread of its own, so that a slow server never holds the ranks' output up. A
    server that is away fails nothing: it is logged once, and tried again at the next look."""
    stop = threading.Event()
    follower = _Follower(artifact_key(recipe, f"{stage} progress"), stage, metrics, log)
    inside = contextvars.copy_context()  # by which Prefect knows the task run that the artifact belongs to
    thread = threading.Thread(target=inside.run, args=(follower.follow, stop, every), name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(PATIENCE)


class _Follower:
    def __init__(self, key: str, stage: str, metrics: Path, log: Log):
        self.key, self.stage, self.metrics, self.log = key, stage, metrics, log
        self._artifact: UUID | None = None
        self._shown: tuple[float, str] | None = None
        self._complained = False

    def follow(self, stop: threading.Event, every: float) -> None:
        """Looks at once, then every few seconds, and once more when it is told to stop."""
        self.look()
        while not stop.wait(every):
            self.look()
        self.look()

    def look(self) -> None:
        news = _words(self.stage, last_line(self.metrics))
        if news == self._shown:
            return
        progress, description = news
        try:
            if self._artifact is None:
                made = create_progress_artifact(progress, key=self.key, description=description)
                self._artifact = cast(UUID, made)  # no coroutine: this thread has no event loop
            else:
                update_progress_artifact(self._artifact, progress, description=description)
        except Exception as error:  # whatever keeps a bar from being drawn is no reason to end a training
            if not self._complained:
                self.log(f"the progress of {self.stage} is not shown for the moment: {type(error).__name__}: {error}")
            self._complained = True
        else:
            self._shown = news


def last_line(metrics: Path) -> dict[str, Any] | None:
    """The last whole line of a metrics.jsonl; None before there is one."""
    try:
        with metrics.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            lines = file.read().split(b"\n")[:-1]  # what follows the last end of a line is not whole
    except FileNotFoundError:
        return None
    return json.loads(lines[-1]) if lines else None


def _words(stage: str, line: dict[str, Any] | None) -> tuple[float, str]:
    """Progress in percent, and what stands beside it."""
    if line is None:
        return 0.0, f"{stage}: before the first steps"
    left = timedelta(seconds=round(line["seconds_left"]))
    return (
        100 * line["step"] / line["steps"],
        f"{stage}: step {line['step']:,} of {line['steps']:,}, loss {line['loss']:.4f}, {left} left",
    )
