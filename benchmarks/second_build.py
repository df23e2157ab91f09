"""What a build costs when nothing changed, and when one template did: `python benchmarks/second_build.py RECIPE LLM`.

Builds the data of both stages of a recipe in a store of its own, three ways in one process: cold, again with nothing
changed, and again with one dataset's template reworded (in a copy of the templates). Prints seconds and what was made.
"""

import shutil
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pipelines.templates.sets
import pipelines.tokens.chat_style
from flows.data.stage_data import dataset_examples, stage_data
from flows.recipe.recipe import Recipe, load_recipe
from flows.runs.workspace import STAGES, Workspace, open_workspace
from pipelines.jobs.tokenizer import prepare_tokenizer

CHANGED = "refcoco"


def quiet(line: str) -> None:
    """Swallows progress: only the table is of interest here."""


def build(workspace: Workspace, llm: str) -> None:
    """What the flow's data tasks do, without Prefect around it."""
    tokenizer = prepare_tokenizer(workspace.store, llm)
    for stage in STAGES:
        stage_data(workspace, stage, tokenizer, partial(dataset_examples, log=quiet), quiet)


def made(workspace: Workspace) -> set[str]:
    """Whole entries of the store, as stage/fingerprint."""
    return {f"{p.parent.parent.name}/{p.parent.name}" for p in workspace.store.root.glob("*/*/manifest.json")}


def main(recipe_name: str, llm: str, root: Path) -> None:
    recipe = load_recipe(recipe_name)
    content = recipe.model_dump()
    content["paths"]["store"] = root / "store"
    workspace = open_workspace(Recipe.model_validate(content), quiet)
    templates = root / "templates"
    shutil.copytree(pipelines.templates.sets.ROOT, templates)
    pipelines.templates.sets.ROOT = pipelines.tokens.chat_style.ROOT = templates
    for what in ("cold", "nothing changed", f"template of {CHANGED} changed"):
        if what.startswith("template"):
            path = templates / "fine" / f"{CHANGED}.yaml"
            path.write_text(path.read_text().replace("Give the box", "Please give the box"))
        before, started = made(workspace), time.perf_counter()
        build(workspace, llm)
        seconds = time.perf_counter() - started
        new = Counter(entry.split("/")[0] for entry in made(workspace) - before)
        print(
            f"{what}: {seconds:.1f} s, made",
            ", ".join(f"{new[key]} {key}" for key in sorted(new)) or "nothing",
            flush=True,
        )


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: {sys.argv[0]} RECIPE LLM_DIRECTORY (whose tokenizer the examples are encoded with)")
    with tempfile.TemporaryDirectory() as directory:
        main(sys.argv[1], sys.argv[2], Path(directory))
