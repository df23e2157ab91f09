"""An official file that is open for reading."""

from pathlib import Path
from types import TracebackType
from typing import Self

from pipelines.sources.base import SourceError

# The first bytes of compressed files → the name of the compression and the command that undoes it.
_COMPRESSIONS = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ\0": ("xz", "unxz"),
    b"(\xb5/\xfd": ("zstd", "unzstd"),
    b"\x04\x22M\x18": ("lz4", "unlz4"),
    b"PK\x03\x04": ("zip", "unzip"),
}


class OpenFile:
    """An open file; a context manager that closes it. Raises SourceError if it cannot be opened."""

    def __init__(self, path: Path):
        self._path = path
        try:
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise SourceError(f"{path} cannot be read: {error.strerror}") from None

    def compression(self) -> tuple[str, str] | None:
        """Returns the name of the file's compression and the command that undoes it, or None. Leaves the file at its
        beginning."""
        head = self._file.read(8)
        self._file.seek(0)
        return next((found for magic, found in _COMPRESSIONS.items() if head.startswith(magic)), None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._file.close()
