"""The signals that make a stage save a checkpoint and exit."""

import signal
from typing import Any

STOPPED = 128 + signal.SIGTERM  # exit code of a rank that saved a checkpoint and exited on request


class StopRequest:
    """Records SIGTERM and SIGINT, so that the current step can finish and a checkpoint is written."""

    def __enter__(self) -> "StopRequest":
        self.received = False
        self._before = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: Any) -> None:
        self.received = True
