"""An official file that is open for reading."""

from pathlib import Path
from types import TracebackType
from typing import Self

from pipelines.sources.base import SourceError


class OpenFile:
    """An open file; a context manager that closes it. Raises SourceError if it cannot be opened."""

    def __init__(self, path: Path):
        self._path = path
        try:
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise SourceError(f"{path} cannot be read: {error.strerror}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._file.close()
