"""What a build costs when nothing has changed, and when one template has.

    python -m benchmarks.data.second_build RECIPE LLM_DIRECTORY

Builds the data of both stages of a recipe in a temporary store, three times in one process and without Prefect: cold,
again without changes, and again with one dataset's template reworded (in a copy of the templates). Prints seconds and
the number of entries that were built. LLM_DIRECTORY has the tokenizer that encodes the examples.
"""

import shutil
import time
from collections import Counter
from functools import partial
from pathlib import Path

from benchmarks import toy
from benchmarks.measure import parser, show, working
from flows.data.stage_data import dataset_examples, stage_data
from flows.recipe.recipe import Recipe, load_recipe
from flows.runs.workspace import STAGES, Workspace, open_workspace
from pipelines.jobs.tokenizer import prepare_tokenizer
from pipelines.templates import sets
from pipelines.tokens import chat_style

CHANGED = "refcoco"


def quiet(line: str) -> None:
    """Discards progress lines."""


def build(workspace: Workspace, llm: str) -> None:
    """Does what the flow's data tasks do, without Prefect."""
    tokenizer = prepare_tokenizer(workspace.store, llm)
    for stage in STAGES:
        stage_data(workspace, stage, tokenizer, partial(dataset_examples, log=quiet), quiet)


def entries(workspace: Workspace) -> set[str]:
    """Complete entries of the store, as kind/fingerprint."""
    return {f"{p.parent.parent.name}/{p.parent.name}" for p in workspace.store.root.glob("*/*/manifest.json")}


def run(recipe_name: str | Path, llm: str, root: Path) -> list[dict[str, str]]:
    content = load_recipe(recipe_name).model_dump()
    content["paths"]["store"] = root / "store"
    workspace = open_workspace(Recipe.model_validate(content), quiet)
    templates = root / "templates"
    shutil.copytree(sets.ROOT, templates)
    sets.ROOT = chat_style.ROOT = templates
    rows: list[dict[str, str]] = []
    cold = 0.0
    for what in ("cold", "nothing changed", f"template of {CHANGED} changed"):
        if what.startswith("template"):
            path = templates / "fine" / f"{CHANGED}.yaml"
            path.write_text(path.read_text().replace("Give the box", "Please give the box"))
        before, started = entries(workspace), time.perf_counter()
        build(workspace, llm)
        seconds = time.perf_counter() - started
        cold = cold or seconds
        new = Counter(entry.split("/")[0] for entry in entries(workspace) - before)
        built = ", ".join(f"{new[key]} {key}" for key in sorted(new)) or "nothing"
        rows.append({"build": what, "seconds": f"{seconds:.1f}", "÷ cold": f"{seconds / cold:.3f}", "built": built})
    return rows


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("recipe", nargs="?", metavar="RECIPE")
    options_of.add_argument("llm", nargs="?", metavar="LLM_DIRECTORY")
    options = options_of.parse_args()
    with working(options) as workdir:
        if options.toy:
            options.recipe, options.llm = toy.recipe(workdir), str(toy.tokenizer(workdir))
        if options.llm is None:
            options_of.error("RECIPE and LLM_DIRECTORY are required")
        root = workdir / "second-build"
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        rows = run(options.recipe, options.llm, root)
    show(f"A second build of {options.recipe}", rows)


if __name__ == "__main__":
    main()
