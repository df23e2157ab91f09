"""Reads a part of a file that is known to be there, on disks that sometimes fail."""

import errno
import os
import time

TRIES = 4
_PAUSE = 0.2  # seconds before the second try; doubled before each further one
# Errors that may pass: of a network file system, of a disk that is reset, of an interrupted or timed-out call.
PASSING = frozenset(
    (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY, errno.ENOMEM, errno.ENFILE, errno.EMFILE,
     errno.EREMOTEIO, errno.ECONNRESET, errno.ENOTCONN, errno.EHOSTUNREACH)
)  # fmt: skip


def read_range(path: str, offset: int, size: int) -> bytes:
    """Returns `size` bytes of a file. Errors that may pass, and short reads, are tried again. Raises OSError, with the
    file's name, if that does not help: the failure is the disk's, and no verdict about what the file holds."""
    for number in range(TRIES):
        try:
            return _read(path, offset, size)
        except OSError as error:
            if error.errno not in PASSING or number == TRIES - 1:
                raise OSError(error.errno, f"{error.strerror}: check the disk, then run it again", path) from None
        time.sleep(_PAUSE * 2**number)
    raise AssertionError("unreachable")


def _read(path: str, offset: int, size: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        pieces: list[bytes] = []
        left = size
        while left:  # a read may return less than was asked for
            piece = os.pread(descriptor, left, offset + size - left)
            if not piece:
                raise OSError(errno.EIO, f"only {size - left:,} of {size:,} bytes could be read")
            pieces.append(piece)
            left -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)
    finally:
        os.close(descriptor)
