"""Finds earlier runs, and what they link to in their store.

A run's links are relative, so they work as long as runs and store are moved together. Where they do not, the entry is
looked up in the stores that the caller names, then in the store of the run's own record (run.json).
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.recipe.recipe import load_recipe
from flows.runs.results import RECORD
from flows.runs.workspace import STAGES, Workspace, workspace_at
from pipelines.core.store import MANIFEST, Store, read_manifest
from pipelines.shards.remote import is_url

RUNS = Path("runs")  # RECIPE/RUN_ID is relative to it
_ENTRY = re.compile(r"(?:.*/)?([^/]+/[0-9a-f]{16}(?:/.*)?)")  # the part of a link's target that names a store entry
Stores = Sequence[Path]  # given by the user: where to look first


class RunError(ValueError):
    """A run does not exist or is not finished; the message says what to do."""


@dataclass(frozen=True)
class Run:
    """A finished run, or one whose data is built. shards: stage → its shards in the store."""

    directory: Path
    store: Store
    shards: dict[str, Path]

    def examples_of(self, stage: str) -> dict[str, Path]:
        """Returns dataset → directory of the examples that the shards of a stage were built from."""
        examples = read_manifest(self.shards[stage])["key"]["examples"]
        return {name: self.store.entry("examples", key) for name, key in examples.items()}

    def workspace(self) -> Workspace:
        """Returns the workspace of the run: its recipe, with the store and the official files at the run's own paths.
        Raises RecipeError if the recipe cannot be read."""
        recipe = load_recipe(self.directory / "recipe.yaml")
        return workspace_at(recipe, self.store, _recorded(self.directory, "data") or recipe.paths.data)


def find_run(run: str | Path) -> Path:
    """Returns the directory of a run. run: a directory, or RECIPE/RUN_ID under runs/. Raises RunError."""
    for path in (Path(run), RUNS / run):
        if path.is_dir():
            directory = path.resolve()
            if (directory / "recipe.yaml").is_file():
                return directory
            raise RunError(f"{path} is not a run: it has no recipe.yaml{_runs_below(path)}")
    known = _runs_below((RUNS / run).parent)
    raise RunError(
        f"there is no run {run}: give its directory, or RECIPE/RUN_ID of a run under {RUNS.absolute()}/{known}"
    )


def _runs_below(directory: Path) -> str:
    """Returns the end of a message that lists the newest five runs in a directory; empty if there are none."""
    runs = sorted(directory.glob("*/recipe.yaml"), key=lambda path: path.stat().st_mtime, reverse=True)
    names = [str(directory / path.parent.name) for path in runs[:5]]
    return f"; existing runs: {', '.join(names)}" if names else ""


def open_run(run: "str | Path | Run", stores: Stores = ()) -> Run:
    """Returns a run with the shards that it links to. run: as for find_run, or one that is already open. Raises
    RunError if the run has no data, or its data is in none of the stores."""
    if isinstance(run, Run):
        return run
    directory = find_run(run)
    links = {stage: directory / "data" / stage for stage in STAGES}
    shards = {stage: linked(link, stores) for stage, link in links.items() if link.is_symlink() or link.is_dir()}
    if not shards:
        raise RunError(f"{directory} has no data yet: run it again with --run-id {directory.name}")
    for stage, found in shards.items():
        if not (found / MANIFEST).is_file():
            raise RunError(f"{links[stage]} links to {found}, which is incomplete: build the data again")
    in_stores = [found.parents[1] for stage, found in shards.items() if links[stage].is_symlink()]
    store = next(iter([*in_stores, *stores]), _recorded(directory, "store"))
    if store is None:
        raise RunError(f"{directory} is a copy that does not say where its store is: give its directory with --store")
    return Run(directory, Store(store, read_only=True), shards)


def linked(link: Path, stores: Stores = ()) -> Path:
    """Returns what a link of a run points to: in the first of `stores` that has it, else the link's own target, else in
    the store that the run recorded. Raises RunError naming all of these."""
    if not link.is_symlink():
        return link.resolve()
    target = Path(link.parent, link.readlink())
    entry = _ENTRY.fullmatch(target.as_posix())
    run = _run_above(link)
    recorded = None if run is None else _recorded(run, "store")
    first = [root / entry[1] for root in stores] if entry else []
    last = [recorded / entry[1]] if entry and recorded else []
    for place in (*first, target, *last):
        if place.exists():
            return place.resolve()
    places = dict.fromkeys(str(place.resolve()) for place in (*first, target, *last))
    record = f"; the run recorded its store as {recorded}" if recorded else ""
    raise RunError(
        f"{link}: the store no longer has what the run links to: there is no {', and no '.join(places)}{record}. "
        "If the store was moved, give its directory with --store; if it was deleted, run the recipe again"
    )


def through_run(path: Path, stores: Stores = ()) -> Path:
    """Returns a path with the link of a run that it may lead through looked up as in `linked`, such as
    `runs/sample/latest/predictions/pope.predictions.jsonl`. Raises RunError if nothing has what the link points to."""
    for link in (path.absolute(), *path.absolute().parents):
        if link.is_symlink() and _run_above(link) is not None:
            return linked(link, stores) / path.absolute().relative_to(link) if stores or not path.exists() else path
    return path


def find_model(model: str | Path, stores: Stores = ()) -> Path:
    """Returns a model directory. model: such a directory, also through a run's link, or a run as for find_run. Raises
    RunError; whether the directory holds a model is for the caller to check."""
    for run in (Path(model), RUNS / model):
        if (run / "recipe.yaml").is_file():
            if not (run / "model").is_symlink() and not (run / "model").is_dir():
                raise RunError(f"{run} has no model: the run is not finished, or it only built data")
            return linked(run / "model", stores)
    return through_run(Path(model), stores)


def shards_at(place: str, stores: Stores = ()) -> list[str]:
    """Returns the locations of the shards of a run, or `place` itself if it is a directory or a URL of shards. Raises
    RunError."""
    if not is_run(place):
        return [place]
    path = through_run(Path(place), stores)
    if (path / MANIFEST).is_file():
        return [str(path)]
    return [str(shards) for shards in open_run(place, stores).shards.values()]


def is_run(place: str) -> bool:
    """Whether `place` denotes a run rather than a directory or URL of shards."""
    return not is_url(place) and not (Path(place) / MANIFEST).is_file()


def _run_above(link: Path) -> Path | None:
    """Returns the directory of the run whose link it is, such as RUN for RUN/model and RUN/data/pretrain."""
    return next((above for above in link.absolute().parents[:2] if (above / "recipe.yaml").is_file()), None)


def _recorded(run: Path, key: str) -> Path | None:
    """Returns a path of the run's record; None for a run of a version without records. Raises RunError."""
    path = run / RECORD
    if not path.is_file():
        return None
    try:
        return Path(json.loads(path.read_text())[key])
    except (ValueError, LookupError, TypeError):
        raise RunError(f"{path} is damaged: it must be a JSON object with the paths `store` and `data`") from None
