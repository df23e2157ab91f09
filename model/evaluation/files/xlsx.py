"""Reads the first sheet of an .xlsx workbook: a zip of XML (ECMA-376, SpreadsheetML), texts and numbers only."""

import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from model.evaluation.interface import EvaluationError

_MAIN = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
_RELATION = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}id"
# RuntimeError: an encrypted part; NotImplementedError: a compression method that zipfile lacks.
_UNREADABLE = (
    *(zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError),
    *(ElementTree.ParseError, KeyError, ValueError, IndexError, AttributeError),
)
_MAX_BYTES = 1 << 30  # of one unpacked part: a zip may claim to be far larger than it is


def read_xlsx(path: Path) -> Iterator[dict[str, str]]:
    """The rows below the header row, as header → cell text ("" for an empty cell); a number is as the file writes it.

    Raises EvaluationError for a file that is not a readable workbook, and for a cell under no header.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            shared = _shared_texts(archive)
            rows = _rows(_part(archive, _first_sheet(archive)), shared)
    except (FileNotFoundError, IsADirectoryError):
        raise EvaluationError(f"{path}: there is no such file") from None
    except _UNREADABLE as error:
        raise EvaluationError(f"{path}: not a readable .xlsx workbook: {error}") from None
    if not rows:
        raise EvaluationError(f"{path}: the first sheet is empty")
    header = rows[0]
    if len(set(header.values())) < len(header):
        raise EvaluationError(f"{path}: two columns have the same header: {', '.join(header.values())}")
    for number, row in enumerate(rows[1:], start=2):
        if stray := set(row) - set(header):
            raise EvaluationError(f"{path}: row {number} has a cell in column {min(stray)}, which has no header")
        yield {name: row.get(column, "") for column, name in header.items()}


def _part(archive: zipfile.ZipFile, name: str) -> ElementTree.Element:
    if archive.getinfo(name).file_size > _MAX_BYTES:
        raise ValueError(f"{name} is larger than {_MAX_BYTES} bytes")
    return ElementTree.fromstring(archive.read(name), ElementTree.XMLParser(target=_Builder()))


class _Builder(ElementTree.TreeBuilder):
    """Refuses a document type, wherever it stands and however it is encoded: entities could expand without end."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError(f"declares the document type {name!r}")


def _first_sheet(archive: zipfile.ZipFile) -> str:
    sheet = _part(archive, "xl/workbook.xml").find(f"{_MAIN}sheets/{_MAIN}sheet")
    for relation in _part(archive, "xl/_rels/workbook.xml.rels"):
        if relation.get("Id") == sheet.get(_RELATION):  # type: ignore[union-attr]
            # "/xl/…" from the archive's root, else from xl/
            return str(PurePosixPath("/xl") / relation.attrib["Target"]).lstrip("/")
    raise ValueError("the workbook has no sheet")


def _shared_texts(archive: zipfile.ZipFile) -> list[str]:
    if "xl/sharedStrings.xml" not in archive.namelist():
        return []
    return [_text(item) for item in _part(archive, "xl/sharedStrings.xml").iter(f"{_MAIN}si")]


def _rows(sheet: ElementTree.Element, shared: list[str]) -> list[dict[str, str]]:
    rows = []
    for row in sheet.iter(f"{_MAIN}row"):
        cells = {}
        for place, cell in enumerate(row.iter(f"{_MAIN}c")):
            reference = cell.get("r")
            column = re.sub(r"\d+$", "", reference) if reference else _column(place)
            if text := _cell(cell, shared):
                cells[column] = text
        rows.append(cells)
    return rows


def _cell(cell: ElementTree.Element, shared: list[str]) -> str:
    value = cell.findtext(f"{_MAIN}v", "")
    if cell.get("t") == "s":
        if (place := int(value)) < 0:
            raise ValueError(f"a cell names shared text {place}")
        return shared[place]
    return _text(cell) if cell.get("t") == "inlineStr" else value


def _text(element: ElementTree.Element) -> str:
    """Plain or formatted runs, without phonetic hints."""
    plain = element.find(f"{_MAIN}is") if element.tag == f"{_MAIN}c" else element
    if plain is None:
        return ""
    texts = plain.findall(f"{_MAIN}t") + plain.findall(f"{_MAIN}r/{_MAIN}t")
    return "".join(text.text or "" for text in texts)


def _column(place: int) -> str:
    letters, place = "", place + 1
    while place:
        place, rest = divmod(place - 1, 26)
        letters = chr(ord("A") + rest) + letters
    return letters
