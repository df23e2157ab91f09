"""Lets only one run at a time use a work directory."""

import contextlib
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path

from model.ranks import Ranks
from model.training.checkpoint import CheckpointError

PATIENCE = 20.0  # seconds to wait for an earlier run in the same work directory to end after it was told to stop


@contextlib.contextmanager
def alone_in(work: Path, ranks: Ranks) -> Iterator[None]:
    """Locks the work directory against other runs; the kernel releases the lock when the process dies.

    Raises CheckpointError if another run holds it for longer than PATIENCE.
    """
    if not ranks.first:
        yield
        return
    work.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + PATIENCE
    with (work / ".lock").open("w") as handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise CheckpointError(f"another run is training in {work}: wait for it or stop it") from None
                time.sleep(0.5)
        yield
