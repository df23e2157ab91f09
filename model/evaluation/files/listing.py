"""Lists the official files of a benchmark without hidden copies (see pipelines/core/walk.py)."""

from pathlib import Path

from model.evaluation.interface import EvaluationError
from pipelines.core.walk import WalkError, is_hidden, walk


def files_like(root: Path, *patterns: str) -> list[Path]:
    """Returns the files below `root` that match a glob pattern, sorted.

    Raises EvaluationError for a link that cannot be followed."""
    try:
        return list(walk(root, *patterns).files)
    except WalkError as error:
        raise EvaluationError(str(error)) from None


def entries(directory: Path) -> list[Path]:
    """Returns the entries of a directory that are not hidden, sorted."""
    return sorted(path for path in directory.iterdir() if not is_hidden(path.name))
