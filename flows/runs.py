"""Runs of before: where they lie, and the data that they link to."""

from pathlib import Path

from flows.workspace import STAGES
from pipelines.remote import is_url
from pipelines.store import MANIFEST

RUNS = Path("runs")  # where RECIPE/RUN_ID is looked for


class RunError(ValueError):
    """A run that is not there, or not finished; the message says what to do."""


def find_run(run: str) -> Path:
    """run: a directory, or RECIPE/RUN_ID under runs/. Raises RunError."""
    for place in (Path(run), RUNS / run):
        if place.is_dir():
            directory = place.resolve()
            if (directory / "recipe.yaml").is_file():
                return directory
            raise RunError(f"{place} is no run: it has no recipe.yaml{_beside(place)}")
    there = _beside((RUNS / run).parent)
    raise RunError(f"no run {run}: give its directory, or RECIPE/RUN_ID of a run under {RUNS}/{there}")


def _beside(directory: Path) -> str:
    """Names the runs of a directory, the newest five, for a message; nothing where it has none."""
    runs = sorted(directory.glob("*/recipe.yaml"), key=lambda path: path.stat().st_mtime, reverse=True)
    names = [str(directory / path.parent.name) for path in runs[:5]]
    return f"; there are {', '.join(names)}" if names else ""


def stage_shards(run: Path) -> dict[str, Path]:
    """stage → its shards in the store, for a run whose data are built. Raises RunError."""
    links = {stage: run / "data" / stage for stage in STAGES}
    gone = [link for link in links.values() if link.is_symlink() and not (link / MANIFEST).is_file()]
    if gone:
        raise RunError(f"{gone[0]} leads to {gone[0].resolve()}, which is not whole: build it again")
    there = {stage: link.resolve() for stage, link in links.items() if link.is_symlink()}
    if not there:
        raise RunError(f"{run} has no data yet: run it again with --run-id {run.name}")
    return there


def is_run(place: str) -> bool:
    """Whether it is a run, not shards themselves."""
    return not is_url(place) and not (Path(place) / MANIFEST).is_file()


def shards_at(place: str) -> list[str]:
    """place: a run (see find_run), or shards themselves: a directory or a URL. Raises RunError."""
    if is_run(place):
        return [str(shards) for shards in stage_shards(find_run(place)).values()]
    return [place]
