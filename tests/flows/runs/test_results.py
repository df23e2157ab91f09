"""The results directory runs/<recipe>/<run id>/ and its links."""

import shutil

import pytest

from flows.recipe.recipe import RecipeError, load_recipe
from flows.runs.results import Results


@pytest.fixture
def recipe(write_recipe):
    return load_recipe(write_recipe())


def test_links_are_relative_and_can_be_replaced(recipe, tmp_path):
    results = Results(recipe, "one")
    for name in ("old", "new"):
        target = tmp_path / "store" / "shards" / name
        target.mkdir(parents=True)
        (target / "file").write_text(name)
        results.link("data/pretrain", target)
    results.announce()
    assert (results.directory / "data" / "pretrain" / "file").read_text() == "new"
    shutil.move(tmp_path / "store", tmp_path / "moved" / "store")
    shutil.move(tmp_path / "runs", tmp_path / "moved" / "runs")
    assert (tmp_path / "moved/runs/tiny/latest/data/pretrain/file").read_text() == "new"


def test_the_written_recipe_equals_the_recipe(recipe):
    assert load_recipe(Results(recipe, "one").directory / "recipe.yaml") == recipe


def test_a_run_id_belongs_to_one_recipe(recipe, write_recipe):
    first = Results(recipe, "one")
    assert Results(recipe, "one").directory == first.directory
    with pytest.raises(RecipeError, match="belongs to a run of a different recipe"):
        Results(load_recipe(write_recipe({"seed": 7})), "one")


def test_new_run_ids_are_unique(recipe):
    assert Results(recipe, None).run_id != Results(recipe, None).run_id


@pytest.mark.parametrize("run_id", ["../out", "a/b", "latest", "latest-build", ".hidden", "-x"])
def test_run_ids_must_be_plain_names(recipe, run_id):
    with pytest.raises(RecipeError, match="run id"):
        Results(recipe, run_id)
