"""Atomic files: written next to their name, renamed when complete, hashed; and what a full disk is called."""

import contextlib
import errno
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.core.errors import ShardError

FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is exceeded", errno.EFBIG: "the file is too large"}
_PIECE = 1 << 16
_ERRNO = re.compile(r"\(os error (\d+)\)|\[[Ee]rrno (\d+)\]")
_NAMED = re.compile(r"[^\n]*?: '([^'\n]+)'")


@contextmanager
def explain_full_disk(
    path: Path,
    error: type[Exception] = ShardError,
    remedy: str = "Free space or raise the limit, then run it again: finished files are reused, and partial files are "
    "ignored",
) -> Iterator[None]:
    """Turns a full-disk error (a key of FULL) into an `error` that names the file and says what to do.

    path: what is being written; for a directory, the message names the file if the error does. remedy: what to do.
    Libraries written in Rust, and Beam, which re-raises any error as one of its own, have the errno only in their text.
    """
    try:
        yield
    except Exception as cause:
        found = _full(cause)
        if found is None:
            raise
        number, name = found
        where = (path.is_dir() and name) or path
        raise error(f"{where} cannot be written: {FULL[number]}. {remedy}") from cause


def _full(error: BaseException) -> tuple[int, str | None] | None:
    """Returns errno and file name, if known, of the full-disk error that is or caused this one; None for others and for
    an error that is explained already."""
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        text = str(cause)
        if any(f"cannot be written: {reason}" in text for reason in FULL.values()):
            return None
        if isinstance(cause, OSError) and cause.errno in FULL:
            return cause.errno, cause.filename
        in_text = _ERRNO.search(text)
        if in_text and int(in_text[1] or in_text[2]) in FULL:
            named = _NAMED.search(text, in_text.end())
            return int(in_text[1] or in_text[2]), named and named[1]
        seen.append(cause)
        cause = cause.__cause__ or cause.__context__
    return None


def file_sha256(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes as hex digits. Raises OSError if the file cannot be read."""
    with path.open("rb", buffering=0) as file:
        first = file.read(_PIECE)
        if len(first) < _PIECE and not file.read(1):  # a small file, for which file_digest takes several times as long
            return hashlib.sha256(first).hexdigest()
        file.seek(0)
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
    except BaseException as error:
        if isinstance(error, OSError) and error.errno in FULL and error.filename in (None, str(partial)):
            error.filename = str(path)  # writing to an open file does not name it
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
