"""A strict JSON Lines reader whose errors all name the file and line."""

import json
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from model.evaluation.interface import EvaluationError

Fields = Mapping[str, type | tuple[type, ...]]


def read_rows(path: Path, fields: Fields) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (`file:line`, row) for each line that is not blank. fields: the types of the fields that a row must have.

    Raises EvaluationError if the file is missing, a line is truncated or malformed, or a field is missing or has the
    wrong type.
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
    """Parses a line. Raises EvaluationError if it is not a JSON object."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # ValueError also covers invalid UTF-8 and overlong integers
        raise EvaluationError(f"{where}: not a complete JSON line ({error}): is the file truncated?") from None
    if not isinstance(row, dict):
        raise EvaluationError(f"{where}: a line must be a JSON object, not {type(row).__name__}")
    return row


def check_fields(where: str, row: Mapping[str, Any], fields: Fields) -> None:
    """Raises EvaluationError if a field is missing or does not have the type that `fields` requires."""
    for name, kind in fields.items():
        if name not in row:
            raise EvaluationError(f"{where}: has no field `{name}`; it has {', '.join(list(row)[:10])}")
        if not isinstance(row[name], kind) or isinstance(row[name], bool):
            raise EvaluationError(f"{where}: field `{name}` has the wrong type, found {reprlib.repr(row[name])}")
