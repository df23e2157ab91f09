"""What the readers of official files share: a JSON object as a whole, and the root of the image files."""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

from model.evaluation.base import EvaluationError, QuestionImage
from pipelines.images import ImageRoot


def read_json(path: Path) -> Any:
    """Raises EvaluationError for a file that is missing or not whole, and for a key that stands twice in an object."""

    def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = sorted({key for key in keys if keys.count(key) > 1})
            raise EvaluationError(f"{path}: {len(twice)} keys stand twice: {', '.join(twice[:5])}")
        return found

    try:
        return json.loads(path.read_bytes(), object_pairs_hook=unique_keys)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise EvaluationError(f"{path}: there is no such file") from None
    except EvaluationError:
        raise
    except (ValueError, RecursionError) as error:  # also: not UTF-8
        raise EvaluationError(f"{path}: not a whole JSON file ({error}): is it truncated, or JSON lines?") from None


def read_object(path: Path, keys: tuple[str, ...] = ()) -> dict[str, Any]:
    """A JSON file that is one object with something in it, `keys` among it. Raises EvaluationError."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise EvaluationError(f"{path}: must hold a JSON object, not {type(content).__name__}")
    if not content:
        raise EvaluationError(f"{path}: must hold a JSON object that is not empty")
    for key in keys:
        if key not in content:
            raise EvaluationError(f"{path}: has no key {key!r}; it has {', '.join(list(content)[:10])}")
    return content


def begins(path: Path, key: str) -> bool:
    """Whether a file begins as a JSON object with this first key, a pattern, does: large files are not read for it.
    Raises EvaluationError for one that is missing or no text."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            return re.match(r"\s*\{\s*" + key, file.read(1000)) is not None
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise EvaluationError(f"{path}: there is no such file") from None
    except UnicodeDecodeError as error:
        raise EvaluationError(f"{path}: not UTF-8 text: {error}") from None


def image_root(images: Path | None) -> ImageRoot | None:
    """None where only scores are wanted. Raises EvaluationError if there is no such directory."""
    try:
        return None if images is None else ImageRoot(images)
    except FileNotFoundError as error:
        raise EvaluationError(str(error)) from None


def image_of(root: ImageRoot | None, name: str) -> tuple[QuestionImage, ...]:
    """The image of a question, named by its path below the root; none without a root."""
    return () if root is None else (QuestionImage(name, partial(root.read, name)),)
