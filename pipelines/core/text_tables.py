"""Tables as text: Markdown for reports and dataset cards, aligned columns for the terminal."""

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
_MARKS = "\\`*[]<>|&~$"  # characters with a meaning in Markdown; underscores inside words have none


def markdown(rows: Sequence[Row]) -> str:
    """Returns a Markdown table with the columns of the first row. Every cell is shown as the text that it is."""
    if not rows:
        return "None.\n"
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([_escaped(row[column]) for column in columns] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def plain(rows: Sequence[Row]) -> list[str]:
    """Returns a table as lines of aligned columns, for a terminal."""
    if not rows:
        return []
    columns = list(rows[0])
    lines = [columns, *([_shown(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return ["  " + "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines]


def printable(text: str) -> str:
    """Escapes terminal control characters and lone surrogates, for text that comes from files."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _escaped(value: Any) -> str:
    return "".join(f"\\{mark}" if mark in _MARKS else mark for mark in " ".join(_shown(value).split()))
