"""Makes a run that is asked to stop, or that has lost its server, exit within seconds.

The exception that stops a run ends its ranks, which save a checkpoint, and reports the run's state to the server. What
else may take minutes is not waited for: a thread that builds data, or requests to a server that is gone. Every output
is written atomically, so the process can exit at any time.
"""

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

import psutil

STOP_SECONDS = 8.0  # from the signal to the exit, unless ranks are still running
SAVE_SECONDS = 90.0  # the same if they are: longer than they may take to save (flows/launch/launch.py)
RANK = "HONEYBEE_LIFELINE"  # in the environment of every rank (flows/launch/processes.py)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stop:
    """Whether and why this process is stopping. Once it is, it exits in time whatever its threads do."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.code = 0
        self._own = 0  # signals that this process sends to itself
        self._at_once = threading.Event()

    def signalled(self, number: int) -> None:
        """Begins to stop; a second signal makes the process exit at once."""
        if self._own:
            self._own -= 1
        elif self.reason is not None:
            self._at_once.set()
        else:
            self._begin(128 + number, f"stopped by {signal.Signals(number).name}; run it again to continue")

    def lost(self, reason: str) -> None:
        """Begins to stop because the server is gone."""
        if self.reason is None:
            logging.disable(logging.CRITICAL)  # Prefect would log every request from now on, with a traceback
            self._begin(1, reason)
            self._own += 1
            os.kill(os.getpid(), signal.SIGTERM)

    def _begin(self, code: int, reason: str) -> None:
        self.reason, self.code = reason, code
        threading.Thread(target=self._leave, name="stop", daemon=True).start()

    def _leave(self) -> None:
        start = time.monotonic()
        while (passed := time.monotonic() - start) < SAVE_SECONDS:
            if self._at_once.wait(0.2) or (passed > STOP_SECONDS and not _ranks_alive()):
                break
        sys.stderr.write(f"honeybee: {self.reason}\n")
        sys.stderr.flush()
        os._exit(self.code)


def _ranks_alive() -> bool:
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # it has just ended
            if RANK in child.environ() and child.status() != psutil.STATUS_ZOMBIE:
                return True
    return False


@contextlib.contextmanager
def stops_promptly() -> Iterator[Stop]:
    """Applies `Stop` to the signals that stop a command, whoever handles them, and exits with its code when the block
    ends because of them. Only for the main thread."""
    stop = Stop()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    listener = threading.Thread(target=_listen, args=(reading, stop), name="signals", daemon=True)
    listener.start()
    try:
        yield stop
    finally:
        signal.set_wakeup_fd(before)
        os.close(writing)
        listener.join()  # it has now seen the signal that raised the exception
        if stop.reason is not None:
            sys.stderr.write(f"honeybee: {stop.reason}\n")
            raise SystemExit(stop.code)


def _listen(reading: int, stop: Stop) -> None:
    while received := os.read(reading, 1):
        if received[0] in SIGNALS:
            stop.signalled(received[0])
    os.close(reading)
