"""A skipped test fails where CI is set, unless its reason is one of those that are expected."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.skips import ALLOWED

TESTS = """
import pytest

def test_without_data():
    pytest.skip("real data not found")

@pytest.mark.skipif(True, reason={expected!r})
def test_expected():
    raise AssertionError

@pytest.mark.xfail(reason="known")
def test_known():
    raise AssertionError
"""


@pytest.mark.parametrize(
    ("ci", "code", "outcome"), [("true", 1, "1 failed, 1 skipped, 1 xfailed"), ("", 0, "2 skipped, 1 xfailed")]
)
def test_an_unexpected_skip_fails_only_in_ci(tmp_path: Path, ci: str, code: int, outcome: str) -> None:
    (tmp_path / "test_it.py").write_text(TESTS.format(expected=ALLOWED[0]))
    (tmp_path / "test_module.py").write_text("import pytest\npytest.skip('not here', allow_module_level=True)\n")
    command = [sys.executable, "-m", "pytest", "-p", "support.skips", "-p", "no:cacheprovider", "-rs", str(tmp_path)]
    env = os.environ | {"CI": ci, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        [*command, "--ignore", str(tmp_path / "test_module.py")], env=env, text=True, capture_output=True
    )
    assert (done.returncode, outcome in done.stdout) == (code, True), done.stdout
    assert ("must not be skipped if CI is set" in done.stdout) == bool(ci)
    module = subprocess.run([*command[:-1], str(tmp_path / "test_module.py")], env=env, text=True, capture_output=True)
    assert ("must not be skipped if CI is set" in module.stdout) == bool(ci), module.stdout
