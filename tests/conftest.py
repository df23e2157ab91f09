"""Fixtures for all tests."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.namespaces import NotPermitted, TwoHosts, two_hosts

pytest_plugins = ("support.skips", "support.slow_first")

os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    DO_NOT_TRACK="1",
    PREFECT_SERVER_ANALYTICS_ENABLED="false",
    OMP_NUM_THREADS="1",  # also of PyTorch and Arrow: the workers and their processes share the cores
    OPENBLAS_NUM_THREADS="1",
    TORCHINDUCTOR_COMPILE_THREADS="1",
)

# A shell starts a background job with these signals ignored, and so would be every process that a test stops with them.
for _number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL)


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The directory of real annotations, images and predictions; tests that use it are marked `realdata`."""
    default = Path(__file__).resolve().parents[2] / "shared" / "realdata"
    root = Path(os.environ.get("HONEYBEE_REALDATA", default))
    if not root.is_dir():
        pytest.skip(f"real data not found at {root}: set HONEYBEE_REALDATA")
    return root


@pytest.fixture(scope="module")
def two_namespaces() -> Iterator[TwoHosts]:
    """Two hosts on one machine, for tests of multi-host training. Creating them requires root on Linux."""
    try:
        with two_hosts() as hosts:
            yield hosts
    except NotPermitted as error:
        pytest.skip(f"network namespaces are not available: {error}")
