"""Locks among processes. A process that waits says whom it waits for."""

import contextlib
import fcntl
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

FIRST, EVERY = 1.0, 60.0  # seconds of waiting after which a line is logged, and between further lines


@contextlib.contextmanager
def lock(
    path: Path, what: object = None, log: Callable[[str], None] = logging.getLogger("honeybee.store").warning
) -> Iterator[None]:
    """Holds an exclusive lock among the processes of this host, and of others where the file system allows. The kernel
    releases it when its holder dies. The file names its holder. what: what the lock is for, named while waiting."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as handle:
        _wait(handle, f"which works on {what or path}", log)
        name_holder(handle)
        yield


def _wait(handle: IO[str], what: str, log: Callable[[str], None]) -> None:
    started, due = time.monotonic(), FIRST
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            waited = time.monotonic() - started
        if waited >= due:
            log(f"waiting for {holder(handle)}, {what} ({waited:,.0f} s so far)")
            due += EVERY
        time.sleep(0.02 if waited < FIRST else 0.5)


def name_holder(handle: IO[str]) -> None:
    """Writes into an open lock file who holds it."""
    with contextlib.suppress(OSError):  # a full disk must not prevent what follows from saying so
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {socket.gethostname()}")
        handle.flush()


def holder(handle: IO[str]) -> str:
    """Returns who holds the lock of an open lock file."""
    handle.seek(0)
    return handle.read(200).strip() or "another process"
