"""Atomic files: written next to their name, renamed when complete, locked while one process writes, hashed."""

import contextlib
import errno
import fcntl
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.core.errors import ShardError

FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is exceeded", errno.EFBIG: "the file is too large"}


@contextmanager
def explain_full_disk(
    path: Path,
    error: type[Exception] = ShardError,
    remedy: str = "Free space or raise the limit, then run it again: finished files are reused, and partial files are "
    "ignored",
) -> Iterator[None]:
    """Turns a full-disk error (a key of FULL) into an `error` that names the file and says what to do.

    path: what is being written; for a directory, the message names the file if the error does. remedy: what to do.
    Errors of libraries written in Rust, such as safetensors, have the errno only in their text.
    """
    try:
        yield
    except Exception as cause:
        found = re.search(r"\(os error (\d+)\)", str(cause))
        number = cause.errno if isinstance(cause, OSError) else int(found[1]) if found else None
        if number not in FULL:
            raise
        where = (path.is_dir() and getattr(cause, "filename", None)) or path
        raise error(f"{where} cannot be written: {FULL[number]}. {remedy}") from cause


def file_sha256(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes as hex digits. Raises OSError if the file cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def named_digests(
    directory: Path, files: Iterable[Path], digest: Callable[[Path], str] = file_sha256
) -> dict[str, str]:
    """Returns path below the directory → SHA-256 of each file, sorted by path."""
    return {path.relative_to(directory).as_posix(): digest(path) for path in sorted(files)}


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path to write to. It is renamed to `path` if the block succeeds and removed if it fails."""
    partial = temporary_path(path)
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def complete_lines(path: Path) -> list[str]:
    """Returns the complete lines of a file, without a partial last line that a killed writer may leave."""
    with path.open(encoding="utf-8", newline="\n") as file:
        return [line for line in file if line.endswith("\n")]


def write_atomic(path: Path, data: bytes | str) -> None:
    """Writes a file atomically: a reader sees either all of it or nothing, even after a power failure."""
    with atomic_file(path) as partial:
        partial.write_bytes(data.encode() if isinstance(data, str) else data)


def temporary_path(path: Path) -> Path:
    """Returns the temporary path of a file that is being written, unique for each writer on any machine."""
    return path.with_name(f".{path.name}.{os.urandom(6).hex()}.partial")


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Holds an exclusive lock among the processes of this host. The kernel releases it when its holder dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
