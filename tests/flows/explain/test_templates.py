"""`honeybee templates check` on the command line."""

import shutil

import pytest
from typer.testing import CliRunner

from flows.cli.main import app
from pipelines.templates import sets


def check(*arguments):
    return CliRunner().invoke(app, ["templates", "check", *map(str, arguments)])


def test_an_example_is_shown_for_every_file_of_every_set():
    done = check()
    assert (done.exit_code, done.stderr) == (0, "")
    for path in sets.ROOT.glob("*/*.yaml"):
        if path.parent.name not in sets.NON_SET_DIRECTORIES and path.name != "set.yaml":
            assert f"\n  {path.name}: " in done.stdout
    assert "\n    [fine-10.gqa.1]\n      > On which piece of furniture" in done.stdout
    assert "[fine-10.gqa.2]" not in done.stdout
    assert "[fine-10-flip.gqa.inverted.1]" in done.stdout, "the first inverted template must be shown too"


def test_all_templates_of_one_set_are_shown():
    done = check("fine-10", "--all")
    assert done.stdout.startswith("fine-10: ten instructions for each dataset")
    assert done.stdout.count("[fine-10.gqa.") == 10
    assert "coarse" not in done.stdout


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A copy of the project's templates."""
    copy = shutil.copytree(sets.ROOT, tmp_path / "templates")
    monkeypatch.setattr("pipelines.templates.sets.ROOT", copy)
    monkeypatch.setattr("pipelines.templates.lint.ROOT", copy)
    return copy


def test_errors_go_to_stderr_and_set_the_exit_code(root):
    path = root / "coarse" / "caption.yaml"
    path.write_text(path.read_text().replace("this image.", "this  image."))
    (root / "task-id" / "caption.yaml").write_text("task: caption\n")
    done = check()
    assert done.exit_code == 1
    first, second = done.stderr.splitlines()
    assert first.startswith(f"{path}:4: the user text has double spaces")
    assert second.startswith(f"{root}/task-id/caption.yaml:1: must have exactly the keys task, templates")
    assert "[coarse.caption]" in done.stdout
    assert check("fine").exit_code == 0


def test_files_may_be_named_after_the_datasets_of_a_recipe(root, write_recipe):
    file = root / "fine" / "mine.yaml"
    file.write_text((root / "fine" / "vqav2.yaml").read_text().replace("id: ", "id: mine."))
    assert f"{file}:1: must be named after a dataset" in check("fine").stderr
    recipe = write_recipe({"datasets/mine": {"annotations": "x", "source": "vqav2"}})
    done = check("fine", "--recipe", recipe)
    assert (done.exit_code, done.stderr) == (0, "")
    assert "\n  mine.yaml: open_question, 1 template\n" in done.stdout
