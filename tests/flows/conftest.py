"""The tiny recipe as a fixture, and the one Prefect server that tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import WriteRecipe, write_tiny

from flows import settings


@pytest.fixture
def write_recipe(tmp_path: Path) -> WriteRecipe:
    """write_recipe({"pretrain/train/steps": 5, …}) → a recipe file with its store and runs in the test's directory;
    a value of None takes the key away."""
    return lambda changes=None, root=tmp_path: write_tiny(root, changes or {})


@pytest.fixture(scope="session")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Prefect server for all tests of a session."""
    settings.configure()
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=180):
        yield
