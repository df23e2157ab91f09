"""What each answer was read as, as a file: JSON lines of id, read and credit (base.Mark)."""

import json
from collections.abc import Mapping
from pathlib import Path

from model.evaluation.base import Mark
from model.evaluation.jsonl import Fields, read_rows
from pipelines.store import write_atomic


def marks_of(predictions: Path) -> Path:
    """Where an evaluation keeps those of its own predictions file."""
    return predictions.with_name(predictions.name.replace(".predictions.", ".marks."))


def write_marks(path: Path, marks: Mapping[str, Mark]) -> None:
    rows = ({"id": key, **vars(mark)} for key, mark in marks.items())
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_marks(path: Path) -> dict[str, Mark]:
    """Raises EvaluationError for a file that is missing or damaged."""
    fields: Fields = {"id": str, "read": (str, type(None)), "credit": (int, float)}
    return {row["id"]: Mark(row["read"], float(row["credit"])) for _, row in read_rows(path, fields)}
