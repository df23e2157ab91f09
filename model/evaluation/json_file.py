"""Whole JSON files, read strictly: every error names the file."""

import json
from pathlib import Path
from typing import Any

from model.evaluation.base import EvaluationError


def read_object(path: Path, keys: tuple[str, ...] = ()) -> dict[str, Any]:
    """The JSON object in a file. Raises EvaluationError for a file that is missing or no JSON, for anything else than
    an object, and for one that lacks a key of `keys`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise EvaluationError(f"{path}: there is no such file") from None
    except (ValueError, RecursionError) as error:  # also: not UTF-8, a number of thousands of digits
        raise EvaluationError(f"{path}: not a whole JSON file ({error}): is it truncated, or JSON lines?") from None
    if not isinstance(content, dict):
        raise EvaluationError(f"{path}: must hold a JSON object, not {type(content).__name__}")
    for key in keys:
        if key not in content:
            raise EvaluationError(f"{path}: has no key {key!r}; it has {', '.join(list(content)[:10])}")
    return content
