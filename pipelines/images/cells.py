"""Images stored as bytes in Parquet and Arrow files, each in a cell of a column or in an element of a list cell.

A cell holds either the bytes or a Hugging Face `Image`, `{bytes, path}`. Parquet files are read one column of one row
group at a time, and the most recent ones are cached. Arrow files are memory-mapped, so a single cell can be read.
"""

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipelines.core.errors import ImageRefError
from pipelines.core.table_files import TableError, TableFile, holds_images, is_list, open_table, table_errors
from pipelines.images.read_range import read_range

_PIECE = 16 << 20  # bytes
CACHE_BYTES = 256 << 20  # size limit of the row group cache; the two most recent ones are cached regardless of size


class Cell(NamedTuple):
    column: str
    row: int  # in the file
    element: int | None  # index in a list cell; None if the cell is not a list

    def __str__(self) -> str:
        return f"{self.column}:{self.row}" + ("" if self.element is None else f"[{self.element}]")


class Cells:
    """Reads cells of any number of files. Create one per pass over the images; threads may share it.

    Its methods raise ImageRefError: image_bad_reference, image_missing, image_corrupt.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: dict[str, TableFile | TableError] = {}
        self._delivered: set[str] = set()  # damaged files that were read to their end
        self._cache: OrderedDict[tuple[str, int, str, str], pa.Array | None] = OrderedDict()

    def path(self, file: str, cell: Cell) -> str | None:
        """Returns the path that is stored with an image or instead of its bytes, if any, without reading the bytes."""
        value = self._value(file, cell, "read_paths")
        return None if value is None else _path(value)

    def read(self, file: str, cell: Cell) -> bytes | str:
        """Returns the bytes of an image, or the path of a file if the cell holds no bytes."""
        value = self._value(file, cell, "read")
        data = value["bytes"] if pa.types.is_struct(value.type) else value
        if data.is_valid:
            return data.as_py()
        path = _path(value)
        if path is None:
            raise ImageRefError("image_missing", f"{Path(file).name}#{cell} has neither bytes nor a path")
        return path

    def _value(self, path: str, cell: Cell, read: str) -> Any:
        """Reads a cell with the file's method `read`. Returns a non-null pyarrow scalar, or None if there is none."""
        try:
            with self._lock, table_errors(Path(path)):
                return self._locked_value(path, cell, read)
        except TableError as error:
            self._check_disk(path)
            raise ImageRefError("image_corrupt", str(error)) from None
        except OSError as error:
            raise OSError(error.errno, f"{error}: check the disk, then run it again", path) from None

    def _check_disk(self, path: str) -> None:
        """Raises OSError if the disk does not deliver all bytes of a file, which is then not known to be damaged."""
        if path not in self._delivered:
            size = Path(path).stat().st_size
            for start in range(0, size, _PIECE):
                read_range(path, start, min(_PIECE, size - start))
            self._delivered.add(path)

    def _locked_value(self, path: str, cell: Cell, read: str) -> Any:
        file = self._file(path)
        where = f"{Path(path).name}#{cell}"
        if file.schema.get_field_index(cell.column) < 0:
            names = ", ".join(file.schema.names)
            raise ImageRefError("image_bad_reference", f"{where}: no such column; the columns are {names}"[:400])
        kind = file.schema.field(cell.column).type
        if is_list(kind) != (cell.element is not None) or not holds_images(kind):
            raise ImageRefError("image_bad_reference", f"{where}: the column has the type {kind}")
        if cell.row >= file.starts[-1]:
            raise ImageRefError("image_missing", f"{where}: the file has only {file.starts[-1]} rows")
        group = int(np.searchsorted(file.starts, cell.row, side="right")) - 1
        column = self._column(path, group, cell.column, read)
        if column is None:
            return None
        value = column[int(cell.row - file.starts[group])]
        if cell.element is not None and value.is_valid:
            if cell.element >= len(value.values):
                raise ImageRefError("image_missing", f"{where}: the list has only {len(value.values)} elements")
            value = value.values[cell.element]
        if not value.is_valid:
            raise ImageRefError("image_missing", f"{where} is null")
        return value

    def _file(self, path: str) -> TableFile:
        if path not in self._files:
            try:
                self._files[path] = open_table(Path(path))
            except TableError as error:
                self._files[path] = error
        file = self._files[path]
        if isinstance(file, TableError):
            raise TableError(str(file))
        return file

    def _column(self, path: str, group: int, name: str, read: str) -> pa.Array | None:
        key = (path, group, name, read)
        if key not in self._cache:
            file = self._file(path)
            column = getattr(file, read)(group, name)
            if column is not None and len(column) != file.starts[group + 1] - file.starts[group]:
                expected = file.starts[group + 1] - file.starts[group]
                raise pa.ArrowInvalid(f"row group {group}, column {name}: {len(column)} rows instead of {expected}")
            self._cache[key] = column
            while len(self._cache) > 2 and sum(_size(cached) for cached in self._cache.values()) > CACHE_BYTES:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        return self._cache[key]


def _size(column: pa.Array | None) -> int:
    return 0 if column is None else column.nbytes


def _path(value: Any) -> str | None:
    """Returns the path in an image cell, if any. Raises ImageRefError, image_corrupt, if it is not UTF-8."""
    try:
        path = value["path"].as_py() if pa.types.is_struct(value.type) and "path" in value else None
    except UnicodeDecodeError:
        raise ImageRefError("image_corrupt", "the path of an image is not UTF-8") from None
    return path if isinstance(path, str) else None
