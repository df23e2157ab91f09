"""Runs and what they link to are found from any working directory, also after runs or store were moved."""

import shutil
from pathlib import Path

import pytest

from flows.recipe.recipe import load_recipe
from flows.runs.find import RunError, find_model, open_run, shards_at, through_run
from flows.runs.results import Results
from pipelines.core.integrity import write_manifest

SHARDS, MODEL, EXAMPLES = "shards/0123456789abcdef", "models/fedcba9876543210/output", "examples/00000000000000aa"


@pytest.fixture
def project(write_recipe, tmp_path, monkeypatch) -> Path:
    """A project directory with a run of a recipe with relative paths; the working directory is another one."""
    root = tmp_path / "project"
    paths = {"store": "store", "runs": "runs", "data": "data"}
    (root / "elsewhere").mkdir(parents=True)
    monkeypatch.chdir(root)
    for entry in (SHARDS, MODEL, EXAMPLES):
        (root / "store" / entry).mkdir(parents=True)
        (root / "store" / entry / "config.json").write_text("{}")
    manifest = {"key": {"examples": {"vqav2": "00000000000000aa"}}}
    write_manifest(root / "store" / SHARDS, manifest)
    results = Results(load_recipe(write_recipe({"sample": None, "paths": paths})), "one")
    results.link("data/finetune", root / "store" / SHARDS)
    results.link("model", root / "store" / MODEL)
    results.announce()
    monkeypatch.chdir(root / "elsewhere")
    return root


def found(run: Path, *stores: Path) -> list[Path]:
    opened = open_run(run, stores)
    (examples,) = opened.examples_of("finetune").values()
    return [opened.shards["finetune"], opened.store.root, examples, find_model(run, stores), opened.workspace().data]


def expected(store: Path, data: Path) -> list[Path]:
    return [store / SHARDS, store, store / EXAMPLES, store / MODEL, data]


def test_a_run_is_found_from_another_directory(project):
    for run in (project / "runs/tiny/one", project / "runs/tiny/latest", Path("../runs/tiny/latest")):
        assert found(run) == expected(project / "store", project / "data")


def test_moved_runs_find_the_store_that_they_recorded(project, tmp_path):
    shutil.move(project / "runs", tmp_path / "deep/archive/runs")
    run = tmp_path / "deep/archive/runs/tiny/latest"
    assert found(run) == expected(project / "store", project / "data")
    model = project / "store" / MODEL
    assert find_model(run / "model") == model
    assert through_run(run / "model/config.json") == model / "config.json"
    assert shards_at(str(run / "data/finetune")) == shards_at(str(run)) == [str(project / "store" / SHARDS)]


def test_a_project_that_is_moved_as_a_whole_finds_its_own_store(project, tmp_path):
    shutil.copytree(project, tmp_path / "copy", symlinks=True)
    assert found(tmp_path / "copy/runs/tiny/one")[:4] == expected(tmp_path / "copy/store", project)[:4]


def test_a_moved_store_is_an_error_that_names_both_places_until_it_is_given(project, tmp_path):
    shutil.move(project / "store", tmp_path / "disk")
    shutil.move(project / "runs", tmp_path / "runs")
    run = tmp_path / "runs/tiny/one"
    for look in (open_run, find_model, shards_at):
        with pytest.raises(RunError) as caught:
            look(str(run))
        for text in (f"there is no {tmp_path}/store/", f"its store as {project}/store", "with --store"):
            assert text in str(caught.value)
    assert found(run, tmp_path / "disk") == expected(tmp_path / "disk", project / "data")
    assert shards_at(str(run), [tmp_path / "nothing", tmp_path / "disk"]) == [str(tmp_path / "disk" / SHARDS)]


def test_a_copy_without_links_finds_the_rest_in_the_store(project, tmp_path):
    shutil.copytree(project / "runs/tiny/one", tmp_path / "copy")
    opened = open_run(tmp_path / "copy")
    assert opened.shards == {"finetune": tmp_path / "copy/data/finetune"}
    assert opened.examples_of("finetune") == {"vqav2": project / "store" / EXAMPLES}
    (tmp_path / "copy/run.json").unlink()
    with pytest.raises(RunError, match="does not say where its store is: give its directory with --store"):
        open_run(tmp_path / "copy")


def test_a_run_stands_for_its_model(project, monkeypatch):
    monkeypatch.chdir(project)
    assert find_model("tiny/one") == find_model("runs/tiny/latest") == project / "store" / MODEL
    assert find_model("runs/tiny/one/model") == Path("runs/tiny/one/model")
    assert find_model("models/mine") == Path("models/mine")  # the command reports what is not a model
    (project / "runs/tiny/one/model").unlink()
    with pytest.raises(RunError, match="has no model: the run is not finished, or it only built data"):
        find_model("tiny/one")


@pytest.mark.parametrize("content", ["{", "[]", '{"store": 1}', "{}"])
def test_a_damaged_record_is_an_error(project, content):
    (project / "runs/tiny/one/run.json").write_text(content)
    with pytest.raises(RunError, match=r"run\.json is damaged"):
        open_run(project / "runs/tiny/one").workspace()
