"""Directories that are made once for all parallel workers of a session."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.core.locks import lock


def make_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Returns the session's directory of that name, after calling `make` with it unless another worker has done so.

    Other workers read it at the same time, so a test that changes files must copy them.
    """
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # of all workers
    directory, done = root / "shared" / name, root / "shared" / f"{name}.done"
    with lock(root / "shared" / f"{name}.lock"):
        if not done.exists():
            make(directory)
            done.touch()
    return directory
