"""The results directory `runs/<recipe>/<run id>/`. Large outputs are links into the store."""

import json
import os
import re
from datetime import UTC, datetime
from pathlib import Path

import yaml

from flows.recipe.recipe import Recipe, RecipeError
from pipelines.core.errors import StoreError
from pipelines.core.files import explain_full_disk, write_atomic

RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
RECORD = "run.json"  # absolute paths of the run's store and data, so that its links are found from anywhere
LATEST = ("latest", "latest-build")  # links to the newest finished run and to the newest data-only run


def results_directory(recipe: Recipe, run_id: str) -> Path:
    return recipe.paths.runs / recipe.name / run_id


def new_run_id(prefix: str = "") -> str:
    """Returns `prefix` followed by the current UTC time."""
    return prefix + f"{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"[:-3]


class Results:
    """The results directory of one run. Opening it again under the same id continues the run."""

    def __init__(self, recipe: Recipe, run_id: str | None):
        """Creates the directory. Raises RecipeError if the id is not a plain name or belongs to a different recipe."""
        self.run_id = run_id or new_run_id()
        if not RUN_ID.fullmatch(self.run_id) or self.run_id in LATEST:
            raise RecipeError(
                f"run id {self.run_id!r} is not allowed: use letters, digits, dots, dashes and underscores, but not "
                f"{' or '.join(LATEST)}"
            )
        self.directory = results_directory(recipe, self.run_id).resolve()
        self.directory.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        written = self.directory / "recipe.yaml"
        if written.is_file() and written.read_text() != text:
            raise RecipeError(
                f"run id {self.run_id} belongs to a run of a different recipe, see {written}: choose another id"
            )
        write_atomic(written, text)
        roots = {"store": recipe.paths.store, "data": recipe.paths.data}
        record = {name: str(path.resolve()) for name, path in roots.items()}
        write_atomic(self.directory / RECORD, json.dumps(record, indent=1, ensure_ascii=False) + "\n")

    def link(self, name: str, target: Path) -> None:
        """Links `name`, relative to the directory, to a store entry."""
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        _link(path, target)

    def write(self, name: str, content: bytes | str) -> Path:
        path = self.directory / name
        with explain_full_disk(path, StoreError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, content)
        return path

    def announce(self, name: str = "latest") -> None:
        """Points the link `name`, one of LATEST, to this run."""
        _link(self.directory.parent / name, self.directory)


def _link(path: Path, target: Path) -> None:
    """Creates a relative symbolic link, so that the whole project directory can be moved."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.unlink(missing_ok=True)
    partial.symlink_to(os.path.relpath(target.resolve(), path.parent.resolve()))
    partial.replace(path)
