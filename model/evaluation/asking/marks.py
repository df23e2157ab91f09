"""Reads and writes marks files: JSON lines with id, read and credit (base.Mark) of each marked question."""

import json
from collections.abc import Mapping
from pathlib import Path

from model.evaluation.files.jsonl import Fields, read_rows
from model.evaluation.interface import Mark
from pipelines.core.files import write_atomic


def marks_path(predictions: Path) -> Path:
    """Returns the path of the marks file that belongs to a predictions file."""
    return predictions.with_name(predictions.name.replace(".predictions.", ".marks."))


def write_marks(path: Path, marks: Mapping[str, Mark]) -> None:
    rows = ({"id": key, **vars(mark)} for key, mark in marks.items())
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_marks(path: Path) -> dict[str, Mark]:
    """Returns the marks by question id. Raises EvaluationError if the file is missing or damaged."""
    fields: Fields = {"id": str, "read": (str, type(None)), "credit": (int, float)}
    return {row["id"]: Mark(row["read"], float(row["credit"])) for _, row in read_rows(path, fields)}
