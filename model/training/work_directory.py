"""The directory in which a stage trains: one run at a time, and clear errors for a full disk."""

import contextlib
import fcntl
import functools
import time
from collections.abc import Iterator
from pathlib import Path

from model.distributed import Ranks
from pipelines.core import files
from pipelines.core.locks import holder, name_holder


class DiskFullError(RuntimeError):
    """Raised if a file cannot be written because the disk is full; the message names the file and says what to do."""


explain_full_disk = functools.partial(
    files.explain_full_disk,
    error=DiskFullError,
    remedy="Partially written files are ignored; free up space, then run again: training resumes from the last "
    "checkpoint",
)
PATIENCE = 20.0  # seconds to wait for an earlier run in the same work directory to end after it was told to stop


@contextlib.contextmanager
def lock_work_directory(work: Path, ranks: Ranks) -> Iterator[None]:
    """Locks the work directory against other runs; the kernel releases the lock when the process dies.

    Raises CheckpointError if another run holds it for longer than PATIENCE.
    """
    if not ranks.first:
        yield
        return
    work.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + PATIENCE
    with (work / ".lock").open("a+") as handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise CheckpointError(
                        f"another run is training in {work} ({holder(handle)}): wait for it or stop it"
                    ) from None
                time.sleep(0.5)
        name_holder(handle)
        yield


class CheckpointError(RuntimeError):
    """Raised if a checkpoint cannot be written or resumed; the message says what to do."""
