"""Fixtures that every test may use."""

import os
from pathlib import Path

import pytest

os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    DO_NOT_TRACK="1",
    PREFECT_SERVER_ANALYTICS_ENABLED="false",
)


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The folder of real annotations, images and predictions; tests that use it are marked `realdata`."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "realdata"
    root = Path(os.environ.get("HONEYBEE_REALDATA", beside))
    if not root.is_dir():
        pytest.skip(f"real data not found at {root}: set HONEYBEE_REALDATA")
    return root
