"""Images as bytes inside Parquet and Arrow files: a cell of a column, or an element of a list in a cell.

A cell holds the bytes themselves or a Hugging Face `Image`, `{bytes, path}`. Of a Parquet file one column of one row
group is read at a time, and the last ones are kept; an Arrow file is memory-mapped, so that a cell is read alone.
"""

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipelines.image_error import ImageRefError
from pipelines.table_files import TableError, TableFile, damage_named, holds_images, is_list, open_table

KEPT_BYTES = 256 << 20  # of the row groups that were read last; the last two are kept whatever their size


class Cell(NamedTuple):
    column: str
    row: int  # in the file
    element: int | None  # of the list that the cell is; None: it is no list

    def __str__(self) -> str:
        return f"{self.column}:{self.row}" + ("" if self.element is None else f"[{self.element}]")


class Cells:
    """Cells of any number of files; made once for a pass over the images. Threads may share it.

    Its methods raise ImageRefError: image_bad_reference, image_missing, image_corrupt.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: dict[str, TableFile | TableError] = {}
        self._kept: OrderedDict[tuple[str, int, str, str], pa.Array | None] = OrderedDict()

    def path(self, file: str, cell: Cell) -> str | None:
        """The path that an image has, beside its bytes or in their place; the bytes are not read."""
        value = self._value(file, cell, "read_paths")
        return None if value is None else _path(value)

    def read(self, file: str, cell: Cell) -> bytes | str:
        """The bytes of an image, or the path of a file in their place."""
        value = self._value(file, cell, "read")
        data = value["bytes"] if pa.types.is_struct(value.type) else value
        if data.is_valid:
            return data.as_py()
        path = _path(value)
        if path is None:
            raise ImageRefError("image_missing", f"{Path(file).name}#{cell} has neither bytes nor a path")
        return path

    def _value(self, path: str, cell: Cell, read: str) -> Any:
        """The cell as `read` of its file gives it: a pyarrow scalar that is not null, or None if there is nothing."""
        try:
            with self._lock, damage_named(Path(path)):
                return self._locked_value(path, cell, read)
        except TableError as error:
            raise ImageRefError("image_corrupt", str(error)) from None

    def _locked_value(self, path: str, cell: Cell, read: str) -> Any:
        file = self._file(path)
        where = f"{Path(path).name}#{cell}"
        if file.schema.get_field_index(cell.column) < 0:
            raise ImageRefError("image_bad_reference", f"{where}: the columns are {', '.join(file.schema.names)}"[:400])
        kind = file.schema.field(cell.column).type
        if is_list(kind) != (cell.element is not None) or not holds_images(kind):
            raise ImageRefError("image_bad_reference", f"{where}: a column of {kind}")
        if cell.row >= file.starts[-1]:
            raise ImageRefError("image_missing", f"{where}: the file has {file.starts[-1]} rows")
        group = int(np.searchsorted(file.starts, cell.row, side="right")) - 1
        column = self._column(path, group, cell.column, read)
        if column is None:
            return None
        value = column[int(cell.row - file.starts[group])]
        if cell.element is not None and value.is_valid:
            if cell.element >= len(value.values):
                raise ImageRefError("image_missing", f"{where}: the list has {len(value.values)} elements")
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
        if key not in self._kept:
            file = self._file(path)
            column = getattr(file, read)(group, name)
            if column is not None and len(column) != file.starts[group + 1] - file.starts[group]:
                raise pa.ArrowInvalid(f"row group {group} has {len(column)} rows in the column {name}")
            self._kept[key] = column
            while len(self._kept) > 2 and sum(_size(kept) for kept in self._kept.values()) > KEPT_BYTES:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]


def _size(column: pa.Array | None) -> int:
    return 0 if column is None else column.nbytes


def _path(value: Any) -> str | None:
    """Raises ImageRefError, image_corrupt, for one that is not UTF-8."""
    try:
        path = value["path"].as_py() if pa.types.is_struct(value.type) and "path" in value else None
    except UnicodeDecodeError:
        raise ImageRefError("image_corrupt", "the path of an image is not UTF-8") from None
    return path if isinstance(path, str) else None
