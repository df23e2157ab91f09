"""The built wheel, installed without the source tree, contains templates, recipes, chat styles and word lists."""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from support.tiny import write_tiny

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


def run(*command: str | Path, cwd: Path) -> str:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PREFECT"))}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=env, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    """The bin directory of a new environment with the wheel, which borrows all other packages from this one."""
    work = tmp_path_factory.mktemp("wheel")
    source = work / "source"
    names = ("pyproject.toml", "README.md", "LICENSE", "pipelines", "model", "flows", "templates")
    for path in (ROOT / name for name in names):
        copy = shutil.copytree if path.is_dir() else shutil.copy2
        source.mkdir(exist_ok=True)
        copy(path, source / path.name)
    # If the build backend is not installed, `build` downloads it.
    isolation = ["--no-isolation"] if importlib.util.find_spec("hatchling") else []
    run(sys.executable, "-m", "build", "--wheel", *isolation, "--outdir", work / "dist", source, cwd=work)
    shutil.rmtree(source)
    (wheel,) = (work / "dist").glob("*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", work / "env", cwd=work)
    run(sys.executable, "-m", "pip", "--python", work / "env", "install", "--no-deps", "--no-index", wheel, cwd=work)
    (site,) = (work / "env").glob("lib/python*/site-packages")
    # .pth files in a directory that is itself listed in a .pth file are not read, which hides the editable project.
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return work / "env" / "bin"


def test_nothing_is_imported_from_the_source_tree(environment, tmp_path):
    code = "import flows, model, pipelines; print(*(part.__path__[0] for part in (flows, model, pipelines)))"
    for path in run(environment / "python", "-c", code, cwd=tmp_path).split():
        assert Path(path).is_relative_to(environment.parent)


def test_the_wheel_can_generate_a_sample_and_build_it(environment, tmp_path):
    run(environment / "honeybee", "sample", "corpus", "--scenes", "20", "--held-out", "12", cwd=tmp_path)
    changes = {"sample/scenes": 20, "sample/held_out": 12}
    out = run(environment / "honeybee", "build", write_tiny(tmp_path, changes), cwd=tmp_path)
    lines = [line.split(": ") for line in out.splitlines() if line.startswith(("pretrain: ", "finetune: "))]
    assert [stage for stage, _ in lines] == ["pretrain", "finetune"]
    assert all((Path(shards) / "manifest.json").is_file() for _, shards in lines)


def test_the_wheel_contains_the_recipes(environment, tmp_path):
    recipes = run(environment / "python", "-c", "from flows.recipe.recipe import RECIPES; print(RECIPES)", cwd=tmp_path)
    assert {path.name for path in Path(recipes.strip()).glob("*.yaml")} >= {"honeybee-7b.yaml", "honeybee-13b.yaml"}


def test_the_wheel_contains_the_word_lists(environment, tmp_path):
    code = "from pipelines.dedup.english import WORDS; print(WORDS.sides)"
    assert "left" in run(environment / "python", "-c", code, cwd=tmp_path)
