"""Unpacks the XML of a workbook within limits, so that no file, however hostile, fills the memory or takes minutes."""

import io
import zipfile
from pathlib import Path
from string import digits
from xml.parsers import expat

from openpyxl.utils import column_index_from_string

# MMBench's workbooks have about 3 MB and 200,000 elements.
MAX_BYTES = 64 << 20  # of the file, and of all its XML parts together when unpacked
MAX_ELEMENTS = 1_000_000  # of all parts together
MAX_OTHER_ELEMENTS = 100_000  # those that are neither cells nor texts, which cost openpyxl most
MAX_ROWS, MAX_COLUMNS = 1_048_576, 16_384  # the format's own limits
MAX_TEXT = 1_000_000  # characters in one element; the format's own limit for a cell is 32,767
_CELLS_AND_TEXTS = {"row", "c", "v", "f", "is", "si", "r", "t"}


def unpacked(path: Path) -> io.BytesIO:
    """Returns an uncompressed zip with the workbook's XML parts, whose sizes are true, whatever the original claims.

    Raises ValueError if a limit is exceeded or a part declares a document type, whose entities could expand without
    end; otherwise the errors of zipfile, zlib and expat.
    """
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES:,} bytes")
    copy, limits = io.BytesIO(), _Limits()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(copy, "w") as plain:
        parts = [archive.getinfo(name) for name in dict.fromkeys(archive.namelist())]
        parts = [part for part in parts if part.filename.lower().endswith((".xml", ".rels"))]
        if sum(part.file_size for part in parts) > MAX_BYTES:
            raise ValueError(f"its unpacked XML is larger than {MAX_BYTES:,} bytes")
        for part in parts:
            if part.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{part.filename} is compressed by a method that workbooks do not use")
            with archive.open(part) as file:
                # A limited read never unpacks more than the claimed size; without a limit, it would.
                data = file.read(part.file_size + 1)
            limits.check(part.filename, data)
            plain.writestr(part.filename, data)
    copy.seek(0)
    return copy


class _Limits:
    """Counts the contents of all parts. Rows and cells must be in order: openpyxl silently drops those that are not."""

    def __init__(self) -> None:
        self._elements = self._others = 0

    def check(self, part: str, data: bytes) -> None:
        """Raises ValueError if a limit is exceeded, and ExpatError if the part is not well-formed XML."""
        self._part, self._root, self._row, self._column, self._text = part, "", 0, 0, 0
        parser = expat.ParserCreate()
        parser.buffer_text = parser.ordered_attributes = True
        parser.StartDoctypeDeclHandler = self._document_type
        parser.StartElementHandler = self._element
        parser.CharacterDataHandler = self._characters
        parser.Parse(data, True)

    def _document_type(self, name: str, *_: object) -> None:
        raise ValueError(f"{self._part} declares the document type {name[:40]!r}")

    def _element(self, name: str, attributes: list[str]) -> None:
        name = name.rpartition(":")[2]
        self._root = self._root or name
        self._elements += 1
        self._others += name not in _CELLS_AND_TEXTS
        if self._elements > MAX_ELEMENTS or self._others > MAX_OTHER_ELEMENTS:
            raise ValueError(f"{self._part} has too many XML elements (cells, texts and the like)")
        self._text = 0
        self._characters("".join(attributes))
        if self._root == "worksheet" and name in ("row", "c"):
            reference = dict(zip(attributes[::2], attributes[1::2], strict=True)).get("r")
            if name == "row":
                self._row, self._column = self._next(int(reference or self._row + 1), self._row), 0
            else:
                column = column_index_from_string(reference.rstrip(digits)) if reference else self._column + 1
                self._column = self._next(column, self._column)
            if self._row > MAX_ROWS or self._column > MAX_COLUMNS:
                raise ValueError(f"{self._part} has more rows or columns than the format allows (row {self._row})")

    def _next(self, index: int, previous: int) -> int:
        if index <= previous:
            raise ValueError(f"{self._part} has rows or cells that are not in order (row {self._row})")
        return index

    def _characters(self, text: str) -> None:
        self._text += len(text)
        if self._text > MAX_TEXT:
            raise ValueError(f"{self._part} has a text of more than {MAX_TEXT:,} characters")
