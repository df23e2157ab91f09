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
LOST_SECONDS = 2.0  # the same if nothing can be reported to the server any more, or everything has been
SAVE_SECONDS = 90.0  # the same if they are: longer than they may take to save (flows/launch/launch.py)
RANK = "HONEYBEE_LIFELINE"  # in the environment of every rank (flows/launch/processes.py)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stop:
    """Whether and why this process is stopping. Once it is, it exits in time whatever its threads do."""

    def __init__(self, hint: str) -> None:
        self.hint = hint
        self.reason: str | None = None
        self.code = 0
        self._until = 0.0
        self._own = 0  # signals that this process sends to itself
        self._at_once = threading.Event()
        self._printing, self._printed = threading.Lock(), False

    def signalled(self, number: int) -> None:
        """Begins to stop; a second signal makes the process exit at once."""
        if self._own:
            self._own -= 1
        elif self.reason is not None:
            self._at_once.set()
        else:
            what = f"stopped by {signal.Signals(number).name}; {self.hint}"
            self._begin(128 + number, what, STOP_SECONDS)

    def lost(self, reason: str) -> None:
        """Begins to stop because the server is gone."""
        if self.reason is None:
            logging.disable(logging.CRITICAL)  # Prefect would log every request from now on, with a traceback
            self._begin(1, reason, LOST_SECONDS)
            self._own += 1
            os.kill(os.getpid(), signal.SIGTERM)

    def _begin(self, code: int, reason: str, patience: float) -> None:
        self.reason, self.code = reason, code
        self._until = time.monotonic() + patience
        threading.Thread(target=self._leave, name="stop", daemon=True).start()

    def unwound(self) -> None:
        """Shortens the wait, because the run's state has been reported: only threads are left."""
        self._until = min(self._until, time.monotonic() + LOST_SECONDS)

    def _leave(self) -> None:
        last = time.monotonic() + SAVE_SECONDS
        while (now := time.monotonic()) < last:
            if self._at_once.wait(0.1) or (now > self._until and not any(map(is_rank, psutil.Process().children()))):
                break
        self.say()
        os._exit(self.code)

    def say(self) -> None:
        """Prints the reason, once."""
        with self._printing:
            if not self._printed:
                self._printed = True
                sys.stderr.write(f"honeybee: {self.reason}\n")
                sys.stderr.flush()


def is_rank(process: psutil.Process) -> bool:
    """Whether a process is a rank that is still running."""
    try:
        return RANK in process.environ() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:  # it has just ended
        return False


@contextlib.contextmanager
def stops_promptly(hint: str = "run it again to continue") -> Iterator[Stop]:
    """Applies `Stop` to the signals that stop a command, even if a library handles them, and exits with its code when
    the block ends because of them. hint: what follows from a signal. Only for the main thread."""
    stop = Stop(hint)
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
            stop.say()
            stop.unwound()
            sys.unraisablehook = lambda _: None  # of connections that threads still use when the interpreter ends
            raise SystemExit(stop.code)


def _listen(reading: int, stop: Stop) -> None:
    while received := os.read(reading, 1):
        if received[0] in SIGNALS:
            stop.signalled(received[0])
    os.close(reading)
