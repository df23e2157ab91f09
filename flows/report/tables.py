"""Table rows for the report, the UI and the terminal, from the manifests of a stage's data and from scores.json."""

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]


def markdown(rows: Sequence[Row]) -> str:
    """Returns a Markdown table with the columns of the first row."""
    if not rows:
        return "None.\n"
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([_cell(row[column]) for column in columns] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(value: Any) -> str:
    text = f"{value:,}" if isinstance(value, int) else str(value)
    for mark in "\\`*[]<>|":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())


def plain(rows: Sequence[Row]) -> list[str]:
    """Returns a table as lines of aligned columns, for a terminal."""
    if not rows:
        return []
    columns = list(rows[0])
    lines = [columns, *([f"{v:,}" if isinstance(v, int) else str(v) for v in row.values()] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return ["  " + "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines]
