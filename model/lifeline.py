"""Ends a rank when the process that launched it is gone, however the launcher ended."""

import os
import signal
import sys
import threading
import time

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
