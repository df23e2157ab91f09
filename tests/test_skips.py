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

    def run(name: str) -> subprocess.CompletedProcess:
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "support.skips",
            "-p",
            "no:cacheprovider",
            str(tmp_path / name),
        ]
        env = os.environ | {"CI": ci, "PYTHONPATH": str(Path(__file__).parent)}
        return subprocess.run(command, cwd=tmp_path, env=env, text=True, capture_output=True)

    done, module = run("test_it.py"), run("test_module.py")
    assert (done.returncode, outcome in done.stdout) == (code, True), done.stdout
    for output in (done.stdout, module.stdout):
        assert ("must not be skipped if CI is set" in output) == bool(ci), output
