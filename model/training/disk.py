"""Disks that take no more: said in words, whoever was writing."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from pipelines.shards import FULL


class DiskFullError(RuntimeError):
    """Something could not be written; the message says where and what to do."""


@contextmanager
def says_if_full(path: Path) -> Iterator[None]:
    """Turns the errors of a disk that takes no more into a DiskFullError. path: what was being written, for errors that
    do not name a file: those of safetensors carry their number in the text alone."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        number = error.errno if isinstance(error, OSError) else int(found[1]) if found else None
        if number not in FULL:
            raise
        where = getattr(error, "filename", None) or path
        raise DiskFullError(
            f"{where} cannot be written: {FULL[number]}. Nothing half-written counts; make room, then run again: "
            "training goes on from the last checkpoint"
        ) from error
