"""Ends a rank when the process that launched it is gone, however the launcher ended."""

import os
import signal
import sys
import threading
import time
from typing import Any

VARIABLE = "HONEYBEE_LIFELINE"  # set to "stdin" by the launcher, which holds the other end of our standard input
GRACE = 120.0  # seconds to write a checkpoint


def hold() -> None:
    """Watches the launcher if it set VARIABLE: sends this process SIGTERM once it is gone, and exits after GRACE."""
    if os.environ.get(VARIABLE) == "stdin":
        threading.Thread(target=_watch, name="lifeline", daemon=True).start()


def _watch() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(128 + signal.SIGTERM)


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
