"""Turns full-disk errors (ENOSPC and similar) into a clear message, regardless of which writer hit them."""

import contextlib
import fcntl
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from model.distributed import Ranks
from pipelines.core.files import FULL


class DiskFullError(RuntimeError):
    """Raised if a file cannot be written because the disk is full; the message names the file and says what to do."""


@contextmanager
def explain_full_disk(path: Path) -> Iterator[None]:
    """Turns full-disk errors into a DiskFullError. path: what is being written, for errors without a file name, such as
    those of safetensors, which have the errno only in their text."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        number = error.errno if isinstance(error, OSError) else int(found[1]) if found else None
        if number not in FULL:
            raise
        where = getattr(error, "filename", None) or path
        raise DiskFullError(
            f"{where} cannot be written: {FULL[number]}. Partially written files are ignored; free up space, then run "
            "again: training resumes from the last checkpoint"
        ) from error


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


class CheckpointError(RuntimeError):
    """Raised if a checkpoint cannot be written or resumed; the message says what to do."""
