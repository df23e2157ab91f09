"""Reads the first sheet of an .xlsx workbook as texts."""

import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from xml.parsers.expat import ExpatError

from openpyxl.packaging.manifest import Override
from openpyxl.reader.excel import ExcelReader
from openpyxl.utils import get_column_letter
from openpyxl.xml.constants import SHARED_STRINGS, XLSX

from model.evaluation.files.xlsx_limits import unpacked
from model.evaluation.interface import EvaluationError

MAX_CELLS = 2_000_000  # rows × columns, empty cells included, as a file can name the last cell of a huge empty sheet
_OLE = b"\xd0\xcf\x11\xe0"  # the first bytes of a file that is encrypted or older than .xlsx
_UNREADABLE = (
    *(zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError),  # of zipfile
    *(ExpatError, SyntaxError, ValueError, TypeError, LookupError, AttributeError, OverflowError),  # of openpyxl
)


def read_xlsx(path: Path) -> Iterator[dict[str, str]]:
    """Yields the rows below the header row as header → cell text ("" for an empty cell), without empty rows.

    Raises EvaluationError for an unreadable workbook, for one that exceeds a limit, and for a cell under no header.
    """
    rows = ((number, row) for number, row in enumerate(_rows(path), start=1) if row)
    _, header = next(rows, (0, {}))
    if not header:
        raise EvaluationError(f"{path}: the first sheet is empty")
    ((name, count),) = Counter(header.values()).most_common(1)
    if count > 1:
        raise EvaluationError(f"{path}: {count} columns have the same header: {name[:80]}")
    for number, row in rows:
        if stray := row.keys() - header.keys():
            column = get_column_letter(min(stray) + 1)
            raise EvaluationError(f"{path}: row {number} has a cell in column {column}, which has no header")
        yield {name: row.get(column, "") for column, name in header.items()}


def _complete(book: ExcelReader) -> None:
    """Names the usual parts of a workbook whose list of parts does not: other readers find them, too."""
    for kind, part in ((XLSX, "/xl/workbook.xml"), (SHARED_STRINGS, "/xl/sharedStrings.xml")):
        listed = {each.PartName for each in book.package.Override}
        if part[1:] in book.valid_files and part not in listed and book.package.find(kind) is None:
            book.package.Override.append(Override(part, kind))


def _rows(path: Path) -> Iterator[dict[int, str]]:
    """Yields every row as column index → text of its cells that are not empty."""
    cells = width = 0
    try:
        with path.open("rb") as file:
            if file.read(len(_OLE)) == _OLE:
                raise ValueError("it is encrypted, or an .xls file: save it as .xlsx without a password")
        # As load_workbook does, but without styles and further sheets, which only cost time.
        book = ExcelReader(unpacked(path), read_only=True, data_only=True, keep_links=False)
        book.read_manifest()
        _complete(book)
        book.read_strings()
        book.shared_strings = dict(enumerate(book.shared_strings))  # a list would accept −1
        book.read_workbook()
        del book.parser.sheets[1:]
        book.read_worksheets()
        if not book.wb.worksheets:
            raise ValueError("the workbook has no sheet")
        sheet = book.wb.worksheets[0]
        sheet.reset_dimensions()  # the size that the sheet claims
        for row in sheet.iter_rows(values_only=True):
            width = max(width, len(row))
            cells += max(width, 1)
            if cells > MAX_CELLS:
                raise ValueError(f"the first sheet has more than {MAX_CELLS:,} cells (rows × columns)")
            yield {column: str(value) for column, value in enumerate(row) if value not in (None, "")}
    except (FileNotFoundError, IsADirectoryError):
        raise EvaluationError(f"{path}: there is no such file") from None
    except _UNREADABLE as error:
        reason = str(error).partition("; use")[0][:300]  # without Python's advice to lift a limit
        raise EvaluationError(f"{path}: not a readable .xlsx workbook: {reason}") from None
