"""Fixtures: the tiny recipe, a corpus with backbones, and the Prefect server that all tests share."""

import atexit
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
from support.forked_python import forked_python
from support.shared import make_once
from support.tiny import WriteRecipe, write_tiny

from flows.data.stage_data import StageData, dataset_examples, stage_data
from flows.recipe.recipe import Recipe, load_recipe
from flows.runs.workspace import STAGES, locate_workspace
from flows.server import settings
from flows.server.temporary import temporary_server
from model.training.sample_backbones import train_backbones
from pipelines.jobs.tokenizer import prepare_tokenizer
from pipelines.sample_corpus import write_sample


@pytest.fixture
def write_recipe(tmp_path: Path) -> WriteRecipe:
    """write_recipe({"pretrain/train/steps": 5, …}) → a recipe file with its store and runs in the test's directory; a
    value of None removes the key."""
    return lambda changes=None, root=tmp_path: write_tiny(root, changes or {})


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the sample corpus (`data`), small backbones with a tokenizer (`backbones`), and what the tests
    build from it (`store`). All workers share it; only the store may be written to."""

    def make(root: Path) -> None:
        write_sample(root / "data", scenes=60, held_out=12, seed=0)
        train_backbones(root / "data", root / "backbones", vision_steps=1, llm_steps=1)

    return make_once(tmp_path_factory, "corpus", make)


@pytest.fixture
def recipe_of(corpus: Path, write_recipe: WriteRecipe, tmp_path: Path) -> Callable[..., Recipe]:
    """recipe_of(changes) → the tiny recipe for that corpus, which needs no backbone training. The session shares the
    store; the runs belong to the test."""

    def make(changes: dict | None = None) -> Recipe:
        paths = {"store": str(corpus / "store"), "runs": str(tmp_path / "runs"), "data": str(corpus / "data")}
        backbones = {"vision": str(corpus / "backbones/vision"), "llm": str(corpus / "backbones/llm")}
        return load_recipe(write_recipe({"sample": None, "paths": paths, "backbones": backbones, **(changes or {})}))

    return make


@pytest.fixture
def build_data() -> Callable[[Recipe], dict[str, StageData]]:
    """Builds the data of both stages of a recipe from `recipe_of`, without Prefect."""

    def quiet(line: str) -> None:
        """Discards progress messages."""

    def build(recipe: Recipe) -> dict[str, StageData]:
        workspace = locate_workspace(recipe)
        assert recipe.backbones.llm is not None
        tokenizer = prepare_tokenizer(workspace.store, recipe.backbones.llm)
        examples_of = partial(dataset_examples, log=quiet)
        return {stage: stage_data(workspace, stage, tokenizer, examples_of, quiet) for stage in STAGES}

    return build


@pytest.fixture(scope="session")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The Prefect server for all tests of a session: the one that `honeybee train` starts for itself."""
    os.environ["PREFECT_HOME"] = str(tmp_path_factory.mktemp("prefect"))
    settings.configure()
    server = ExitStack()
    server.enter_context(temporary_server())
    atexit.register(server.close)  # after Prefect has sent its last events, which otherwise takes a minute of retries
    yield


@pytest.fixture(scope="module")
def forked_ranks() -> Iterator[None]:
    """Forks the ranks that the flows of a module start (forked_python.py)."""
    with forked_python() as python, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", python)
        yield
