"""A rank that is asked to stop ends its step, saves and leaves."""

import signal
from typing import Any

STOPPED = 128 + signal.SIGTERM  # exit code of a rank that saved and left because it was asked to


class StopRequest:
    """Remembers SIGTERM and SIGINT, so that the step in progress ends and a checkpoint is written."""

    def __enter__(self) -> "StopRequest":
        self.received = False
        self._before = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: Any) -> None:
        self.received = True
