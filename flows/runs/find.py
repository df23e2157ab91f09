"""Finds earlier runs and the data that they link to."""

from pathlib import Path

from flows.runs.workspace import STAGES
from pipelines.core.store import MANIFEST, Store, read_manifest
from pipelines.shards.remote import is_url

RUNS = Path("runs")  # RECIPE/RUN_ID is relative to it


class RunError(ValueError):
    """A run does not exist or is not finished; the message says what to do."""


def find_run(run: str) -> Path:
    """Returns the directory of a run. run: a directory, or RECIPE/RUN_ID under runs/. Raises RunError."""
    for path in (Path(run), RUNS / run):
        if path.is_dir():
            directory = path.resolve()
            if (directory / "recipe.yaml").is_file():
                return directory
            raise RunError(f"{path} is not a run: it has no recipe.yaml{_runs_below(path)}")
    known = _runs_below((RUNS / run).parent)
    raise RunError(f"there is no run {run}: give its directory, or RECIPE/RUN_ID of a run under {RUNS}/{known}")


def _runs_below(directory: Path) -> str:
    """Returns the end of a message that lists the newest five runs in a directory; empty if there are none."""
    runs = sorted(directory.glob("*/recipe.yaml"), key=lambda path: path.stat().st_mtime, reverse=True)
    names = [str(directory / path.parent.name) for path in runs[:5]]
    return f"; existing runs: {', '.join(names)}" if names else ""


def stage_shards(run: Path) -> dict[str, Path]:
    """Returns stage → shards in the store. Raises RunError if the run has no data or its data is gone."""
    links = {stage: run / "data" / stage for stage in STAGES}
    gone = [link for link in links.values() if link.is_symlink() and not (link / MANIFEST).is_file()]
    if gone:
        raise RunError(f"{gone[0]} links to {gone[0].resolve()}, which is missing or incomplete: build the data again")
    built = {stage: link.resolve() for stage, link in links.items() if link.is_symlink()}
    if not built:
        raise RunError(f"{run} has no data yet: run it again with --run-id {run.name}")
    return built


def is_run(place: str) -> bool:
    """Whether `place` denotes a run rather than a directory or URL of shards."""
    return not is_url(place) and not (Path(place) / MANIFEST).is_file()


def shards_at(place: str) -> list[str]:
    """Returns the locations of the shards of a run, or `place` itself if it is a directory or a URL of shards. Raises
    RunError."""
    if is_run(place):
        return [str(shards) for shards in stage_shards(find_run(place)).values()]
    return [place]


def examples_of(shards: Path) -> dict[str, Path]:
    """Returns dataset → directory of the examples that the shards, an entry of a store, were built from."""
    store = Store(shards.parents[1], read_only=True)
    return {name: store.entry("examples", key) for name, key in read_manifest(shards)["key"]["examples"].items()}
