"""Fixtures: shards that are already built."""

import shutil
from pathlib import Path

import pytest
from support.shard_world import make_world

from pipelines.core.store import Store
from pipelines.jobs.shards import build_shards


@pytest.fixture(scope="session")
def _built_store(tmp_path_factory, tokenizer_dir) -> Path:
    root = tmp_path_factory.mktemp("built")
    build_shards(Store(root / "store"), **make_world(root, tokenizer_dir))
    return root / "store"


@pytest.fixture
def shards(_built_store, tmp_path) -> Path:
    """The shards of `world`, in a store of the test that it may change."""
    store = shutil.copytree(_built_store, tmp_path / "store")
    (manifest,) = store.glob("shards/*/manifest.json")
    return manifest.parent
