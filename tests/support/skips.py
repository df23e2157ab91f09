"""A pytest plugin: with CI set, a skipped test is a failure, unless its reason is one of ALLOWED."""

import os
import re
from collections.abc import Iterator

import pytest

# Reasons that are expected where the checks run. Missing data is not among them: `.ci/run` needs ../shared.
ALLOWED = (
    "the optional package wandb is not installed",
    "wandb is installed",  # then the test above runs instead
    "there is a CUDA device",  # the test is about a machine without one
)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Iterator[None]:
    return _refuse((yield))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Iterator[None]:
    return _refuse((yield))


def _refuse(report):
    """Turns an unexpected skip into a failure. On a developer's machine, and for expected failures, does nothing."""
    if os.environ.get("CI") and report.skipped and not hasattr(report, "wasxfail"):
        _, _, reason = report.longrepr
        if not any(re.search(allowed, reason) for allowed in ALLOWED):
            report.outcome = "failed"
            report.longrepr = f"{report.nodeid} must not be skipped if CI is set (see {__file__}): {reason}"
    return report
