"""`runs/<recipe>/<run id>/`: what a run leaves for people; what is large there is a link into the store."""

import os
import re
from datetime import UTC, datetime
from pathlib import Path

import yaml

from flows.recipe import Recipe, RecipeError
from pipelines.store import write_atomic

RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
LATEST = ("latest", "latest-build")  # links to the newest finished run, and to the newest that only built data


def results_directory(recipe: Recipe, run_id: str) -> Path:
    return recipe.paths.runs / recipe.name / run_id


def new_run_id(prefix: str = "") -> str:
    """The time, UTC."""
    return prefix + f"{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"[:-3]


class Results:
    """The directory of one run. Opened again under the same id, it goes on where it was."""

    def __init__(self, recipe: Recipe, run_id: str | None):
        """Raises RecipeError for an id that is no plain name, or one that belongs to a run of another recipe."""
        self.run_id = run_id or new_run_id()
        if not RUN_ID.fullmatch(self.run_id) or self.run_id in LATEST:
            raise RecipeError(
                f"run id {self.run_id!r}: use letters, digits, dot, dash and underscore; not {' or '.join(LATEST)}"
            )
        self.directory = results_directory(recipe, self.run_id).resolve()
        self.directory.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        written = self.directory / "recipe.yaml"
        if written.is_file() and written.read_text() != text:
            raise RecipeError(
                f"run id {self.run_id} belongs to a run of another recipe, see {written}: choose another id"
            )
        write_atomic(written, text)

    def link(self, name: str, target: Path) -> None:
        """Makes `name`, relative to the directory, lead to an entry of the store."""
        place = self.directory / name
        place.parent.mkdir(parents=True, exist_ok=True)
        _link(place, target)

    def write(self, name: str, content: bytes | str) -> Path:
        place = self.directory / name
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(place, content)
        return place

    def announce(self, name: str = "latest") -> None:
        """Makes `name`, one of LATEST, lead here."""
        _link(self.directory.parent / name, self.directory)


def _link(place: Path, target: Path) -> None:
    """A relative link, so that a project directory can be moved as a whole."""
    partial = place.with_name(f".{place.name}.{os.getpid()}.partial")
    partial.unlink(missing_ok=True)
    partial.symlink_to(os.path.relpath(target.resolve(), place.parent.resolve()))
    partial.replace(place)
