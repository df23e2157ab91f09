"""JSON lines, read strictly: every error names file and line."""

import json
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from model.evaluation.base import EvaluationError

Fields = Mapping[str, type | tuple[type, ...]]


def read_rows(path: Path, fields: Fields) -> Iterator[tuple[str, dict[str, Any]]]:
    """(`file:line`, row) of each line that is not blank; `fields`: what a row must have, and of which type.

    Raises EvaluationError for a file that is missing, a truncated or malformed line, a field that is missing or of
    another type.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    row = parse_row(f"{path}:{number}", line)
                    check_fields(f"{path}:{number}", row, fields)
                    yield f"{path}:{number}", row
    except (FileNotFoundError, IsADirectoryError):
        raise EvaluationError(f"{path}: there is no such file") from None
    except UnicodeDecodeError as error:
        raise EvaluationError(f"{path}: not UTF-8 text: {error}") from None


def parse_row(where: str, line: str | bytes) -> dict[str, Any]:
    """A line as a JSON object, or EvaluationError."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # also: not UTF-8, a number of thousands of digits
        raise EvaluationError(f"{where}: not a whole JSON line ({error}): is the file truncated?") from None
    if not isinstance(row, dict):
        raise EvaluationError(f"{where}: a line must be a JSON object, not {type(row).__name__}")
    return row


def check_fields(where: str, row: Mapping[str, Any], fields: Fields) -> None:
    """Raises EvaluationError for a field that is missing or of another type than `fields` says."""
    for name, kind in fields.items():
        if name not in row:
            raise EvaluationError(f"{where}: has no field {name!r}; it has {', '.join(list(row)[:10])}")
        if not isinstance(row[name], kind) or isinstance(row[name], bool):
            raise EvaluationError(f"{where}: field {name!r} is {reprlib.repr(row[name])}, of the wrong type")
