"""Helpers for the readers of official files: JSON files that are loaded completely, and the image root."""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

from model.evaluation.interface import EvaluationError, QuestionImage
from pipelines.images.references import ImageRoot


def read_json(path: Path) -> Any:
    """Reads a JSON file. Raises EvaluationError if it is missing, incomplete or has a duplicate key in an object."""

    def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            repeated = sorted({key for key in keys if keys.count(key) > 1})
            raise EvaluationError(f"{path}: {len(repeated)} duplicate keys: {', '.join(repeated[:5])}")
        return found

    try:
        return json.loads(path.read_bytes(), object_pairs_hook=unique_keys)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise EvaluationError(f"{path}: there is no such file") from None
    except EvaluationError:
        raise
    except (ValueError, RecursionError) as error:  # also: not UTF-8
        raise EvaluationError(f"{path}: not a complete JSON file ({error}): is it truncated, or JSON lines?") from None


def read_object(path: Path, keys: tuple[str, ...] = ()) -> dict[str, Any]:
    """Reads a JSON file. Raises EvaluationError if it is not a single, non-empty object that has all of `keys`."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise EvaluationError(f"{path}: must contain a JSON object, not {type(content).__name__}")
    if not content:
        raise EvaluationError(f"{path}: must contain a non-empty JSON object")
    for key in keys:
        if key not in content:
            raise EvaluationError(f"{path}: has no key {key!r}; it has {', '.join(list(content)[:10])}")
    return content


def starts_with_key(path: Path, key: str) -> bool:
    """Returns whether a file starts like a JSON object whose first key matches the pattern `key`; reads only the start.
    Raises EvaluationError if the file is missing or is not text."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            return re.match(r"\s*\{\s*" + key, file.read(1000)) is not None
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise EvaluationError(f"{path}: there is no such file") from None
    except UnicodeDecodeError as error:
        raise EvaluationError(f"{path}: not UTF-8 text: {error}") from None


def image_root(images: Path | None) -> ImageRoot | None:
    """Opens the image root; None if only scores are needed. Raises EvaluationError if the directory does not exist."""
    try:
        return None if images is None else ImageRoot(images)
    except FileNotFoundError as error:
        raise EvaluationError(str(error)) from None


def question_images(root: ImageRoot | None, name: str) -> tuple[QuestionImage, ...]:
    """Returns the image of a question, named by its path below the root; no image without a root."""
    return () if root is None else (QuestionImage(name, partial(root.read, name)),)
