"""Reading workbooks: cells of all kinds, and damaged and hostile files, which cause one clear error within limits."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import openpyxl
import pytest
from support.workbooks import MAIN, text_rows, write_workbook

from model.evaluation.benchmarks import mmbench
from model.evaluation.files import xlsx, xlsx_limits
from model.evaluation.files.xlsx import read_xlsx
from model.evaluation.interface import EvaluationError

HEADER, ROW = ["index", "answer"], ["1", "A"]


def refused(path: Path, message: str) -> None:
    with pytest.raises(EvaluationError, match=message) as error:
        list(read_xlsx(path))
    assert str(path) in str(error.value) and len(str(error.value)) < 500


def test_shared_inline_and_rich_texts_and_gaps(tmp_path):
    rows = (
        '<row r="1"><c r="A1" t="s"><v>0</v></c><c r="B1" t="inlineStr"><is><t>answer</t></is></c><c r="AA1" t="s">'
        '<v>1</v></c></row><row r="4"><c r="A4"><v>7</v></c><c r="AA4" t="s"><v>1</v></c></row><row r="9"/>'
    )
    shared = '<si><t>index</t></si><si><r><t>no</t></r><r><t>te</t></r><rPh sb="0" eb="1"><t>x</t></rPh></si>'
    path = write_workbook(tmp_path / "a.xlsx", rows, shared=shared)
    assert list(read_xlsx(path)) == [{"index": "7", "answer": "", "note": "note"}]


def test_numbers_and_results_of_formulas(tmp_path):
    rows = (
        '<row><c t="str"><v>index</v></c><c t="str"><v>b</v></c><c t="str"><v>c</v></c></row>'
        '<row><c><v>1000241</v></c><c><v>0.1</v></c><c t="str"><f>A1</f><v>x</v></c></row>'
    )
    path = write_workbook(tmp_path / "a.xlsx", rows)
    assert list(read_xlsx(path)) == [{"index": "1000241", "b": "0.1", "c": "x"}]


def test_parts_that_the_list_of_parts_does_not_name_are_found(tmp_path):
    shared, rows = "<si><t>index</t></si>", '<row><c t="s"><v>0</v></c></row><row><c><v>7</v></c></row>'
    whole = write_workbook(tmp_path / "a.xlsx", rows, shared=shared)
    with zipfile.ZipFile(whole) as archive, zipfile.ZipFile(tmp_path / "b.xlsx", "w") as copy:
        for name in archive.namelist():
            data = archive.read(name)
            copy.writestr(name, re.sub(rb"<Override[^>]*/>", b"", data) if name == "[Content_Types].xml" else data)
    assert list(read_xlsx(tmp_path / "b.xlsx")) == list(read_xlsx(whole)) == [{"index": "7"}]


def test_a_number_of_too_many_digits_is_refused_without_advice_to_lift_the_limit(tmp_path):
    path = write_workbook(
        tmp_path / "a.xlsx", f'<row><c t="str"><v>a</v></c></row><row><c><v>{"9" * 5000}</v></c></row>'
    )
    with pytest.raises(EvaluationError, match=r"5000 digits$"):
        list(read_xlsx(path))


def test_only_the_first_sheet_is_read(tmp_path):
    book = openpyxl.Workbook()
    for number, sheet in enumerate((book.active, *(book.create_sheet() for _ in range(300)))):
        sheet.append(["index"])
        sheet.append([number])
    book.save(tmp_path / "a.xlsx")
    assert list(read_xlsx(tmp_path / "a.xlsx")) == [{"index": "0"}]


def test_errors_name_row_and_column(tmp_path):
    stray = write_workbook(tmp_path / "a.xlsx", '<row><c t="str"><v>a</v></c></row><row><c/><c><v>1</v></c></row>')
    refused(stray, "row 2 has a cell in column B, which has no header")
    refused(
        write_workbook(tmp_path / "a.xlsx", text_rows([*HEADER, "answer"])), "2 columns have the same header: answer"
    )
    path = write_workbook(tmp_path / "a.xlsx", text_rows(["index"], ["1"]))
    with pytest.raises(EvaluationError, match="has no column 'prediction'"):
        mmbench.read_predictions(path, None, None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file"),
        (b"", r"not a readable \.xlsx workbook"),
        (b"PK not really", r"not a readable \.xlsx workbook"),
        (b"index,answer\n1,A\n", r"not a readable \.xlsx workbook"),
        (bytes.fromhex("d0cf11e0a1b11ae1") + bytes(504), r"encrypted, or an \.xls file: save it as \.xlsx"),
    ],
)
def test_files_that_are_not_workbooks_are_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "a.xlsx").write_bytes(content)
    refused(tmp_path / "a.xlsx", message)


def test_damaged_workbooks_are_refused(tmp_path):
    path = write_workbook(tmp_path / "a.xlsx", text_rows(HEADER, ROW))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    refused(path, "not a readable")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "no workbook")
    refused(path, "not a readable")
    refused(write_workbook(path, sheet=f'<worksheet xmlns="{MAIN}"><sheetData>'), "not a readable")
    refused(write_workbook(path), "the first sheet is empty")
    for index in ("-1", "1", "x"):
        shared = f'<row><c t="s"><v>{index}</v></c></row>'
        refused(write_workbook(path, shared, shared="<si><t>a</t></si>"), "not a readable")


@pytest.mark.parametrize("rows", ['<row r="2"/><row r="1"/>', '<row><c r="B1"/><c r="A1"/></row>', '<row r="0"/>'])
def test_rows_and_cells_out_of_order_are_refused(tmp_path, rows):
    refused(write_workbook(tmp_path / "a.xlsx", rows), "not in order")


@pytest.mark.parametrize("offset, value", [(8, 1), (10, 99), (10, 14)])  # encrypted, unknown method, LZMA
def test_a_member_that_cannot_be_unpacked_is_an_error(tmp_path, offset, value):
    path = write_workbook(tmp_path / "a.xlsx", text_rows(HEADER, ROW))
    data = bytearray(path.read_bytes())
    entry = data.find(b"PK\x01\x02")  # the central directory
    while entry >= 0:
        data[entry + offset] = value
        entry = data.find(b"PK\x01\x02", entry + 1)
    path.write_bytes(data)
    refused(path, r"not a readable \.xlsx workbook")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_document_type_is_refused_at_any_position(tmp_path, encoding):
    start = f'<?xml version="1.0" encoding="{encoding}"?><!--{"x" * 2000}--><!DOCTYPE x [<!ENTITY e "a">]>'
    sheet = f'{start}<worksheet xmlns="{MAIN}"><sheetData>{text_rows(HEADER, ROW)}</sheetData></worksheet>'
    refused(write_workbook(tmp_path / "a.xlsx", sheet=sheet.encode(encoding)), "document type")


def test_a_claimed_dimension_is_ignored(tmp_path):
    for claim in ("A1:XFD1048576", "XFD1048576:XFD1048576", "A1"):
        path = write_workbook(tmp_path / "a.xlsx", text_rows(HEADER, ROW), before=f'<dimension ref="{claim}"/>')
        assert list(read_xlsx(path)) == [{"index": "1", "answer": "A"}]


def false_size(path: Path, part: str, size: int) -> Path:
    """Writes a false uncompressed size of a part into its local header and the central directory."""
    data = bytearray(path.read_bytes())
    for signature, offset, name in ((b"PK\x03\x04", 22, 30), (b"PK\x01\x02", 24, 46)):
        entry = data.find(signature)
        while data[entry + name : entry + name + len(part)] != part.encode():
            entry = data.find(signature, entry + 1)
        data[entry + offset : entry + offset + 4] = size.to_bytes(4, "little")
    path.write_bytes(data)
    return path


# What each file would need in memory or time without a limit is far more than the test allows.
BOMBS = {
    "one text of 200 MB": lambda path: write_workbook(path, text_rows(["x" * 200_000_000])),
    "one text of 40 MB": lambda path: write_workbook(path, text_rows(["x" * 40_000_000])),
    "one attribute of 40 MB": lambda path: write_workbook(path, f'<row spans="{"1" * 40_000_000}"/>'),
    "many rows": lambda path: write_workbook(path, "<row/>" * 10_000_000),
    "many cells in a row": lambda path: write_workbook(path, f"<row>{'<c/>' * 10_000_000}</row>"),
    "shared texts": lambda path: write_workbook(path, text_rows(HEADER), shared="<si/>" * 10_000_000),
    "many sheets": lambda path: write_workbook(
        path, text_rows(HEADER), sheets='<sheet name="S" sheetId="1" r:id="rId1"/>' * 1_000_000
    ),
    "a false size": lambda path: false_size(
        write_workbook(path, text_rows(["x" * 200_000_000])), "xl/worksheets/sheet1.xml", 1000
    ),
    "a false size of a part that openpyxl reads at once": lambda path: false_size(
        write_workbook(path, text_rows(HEADER), sheets=" " * 200_000_000), "xl/workbook.xml", 1000
    ),
    "a last row far away": lambda path: write_workbook(
        path, f'{text_rows(HEADER)}<row r="1000000000"><c t="str"><v>1</v></c></row>'
    ),
    "wide rows": lambda path: write_workbook(
        path, "".join(f'<row><c r="XFD{row}"><v>1</v></c></row>' for row in range(1, 100_000))
    ),
    "wide header": lambda path: write_workbook(
        path, text_rows([f"n{k}" for k in range(16_000)]) + "<row><c><v>1</v></c></row>" * 200_000
    ),
    "the same sheet 90,000 times": lambda path: write_workbook(
        path,
        text_rows(HEADER, *[["1"]] * 5_000) + "<row><c/><c/><c><v>1</v></c></row>",
        sheets='<sheet name="S" sheetId="1" r:id="rId1"/>' * 90_000,
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_in_bounded_time_and_memory(tmp_path, name):
    path = BOMBS[name](tmp_path / "a.xlsx")
    assert path.stat().st_size < 2_000_000
    code = (
        "import resource, sys, pathlib; from model.evaluation.files.xlsx import read_xlsx\n"
        "before = resource.getrusage(resource.RUSAGE_SELF)\n"
        "try: rows = list(read_xlsx(pathlib.Path(sys.argv[1])))\n"
        "except ValueError as error: print(error)\n"
        "after = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print(after.ru_maxrss - before.ru_maxrss, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)"
    )
    done = subprocess.run([sys.executable, "-c", code, path], text=True, capture_output=True, check=True)
    message, used = done.stdout.splitlines()
    kilobytes, seconds = map(float, used.split())
    assert message.startswith(f"{path}: ") and len(message) < 500
    assert kilobytes < 300_000 and seconds < 20, (kilobytes, seconds)


def test_limits_are_far_above_real_workbooks():
    assert xlsx_limits.MAX_BYTES >= 20 * 2_700_000 and xlsx_limits.MAX_ELEMENTS >= 8 * 120_000
    assert xlsx.MAX_CELLS >= 4377 * 100
