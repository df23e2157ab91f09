"""Fixtures of the tests that ask a judge."""

from pathlib import Path

import pytest
from support.judge_server import KEY
from support.shared import make_once

from pipelines.sample_corpus import write_sample


@pytest.fixture(scope="session")
def judged_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sample corpus with enough held-out scenes for every judged benchmark."""
    return make_once(tmp_path_factory, "judged_corpus", lambda path: write_sample(path, scenes=8, held_out=64, seed=0))


@pytest.fixture
def judge_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HONEYBEE_JUDGE_KEY", KEY)
