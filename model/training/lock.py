"""One run at a time in a work directory."""

import contextlib
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path

from model.ranks import Ranks
from model.training.checkpoint import CheckpointError

PATIENCE = 20.0  # seconds for an earlier run in the same work directory, that was told to stop, to end


@contextlib.contextmanager
def alone_in(work: Path, ranks: Ranks) -> Iterator[None]:
    """Holds the work directory against another run; the kernel lets go of it when we die."""
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
                    raise CheckpointError(f"another run is training in {work}: wait for it, or stop it") from None
                time.sleep(0.5)
        yield
