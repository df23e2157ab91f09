"""Turns full-disk errors (ENOSPC and similar) into a clear message, regardless of which writer hit them."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from pipelines.shards import FULL


class DiskFullError(RuntimeError):
    """Raised if a file cannot be written because the disk is full; the message names the file and says what to do."""


@contextmanager
def says_if_full(path: Path) -> Iterator[None]:
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
