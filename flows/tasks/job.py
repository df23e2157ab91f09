"""Runs one `python -m …` job of several ranks that produces a store entry."""

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from flows.launch.hosts import count_ranks, find_cluster
from flows.launch.launch import launch
from flows.runs.workspace import Log, Workspace
from pipelines.core.files import named_digests, write_atomic
from pipelines.core.store import FileDigests, Store


def run_job(
    workspace: Workspace,
    kind: str,
    key: Mapping[str, Any],
    module: str,
    job: Mapping[str, Any],
    log: Log,
    everywhere: bool = False,
    env: Mapping[str, str] | None = None,
    places_of_job: Sequence[str] = ("output",),
    watched: Callable[[Path], AbstractContextManager[object]] = contextlib.nullcontext,
) -> Path:
    """Returns the store entry of (kind, key), after running `python -m module job.json` if the entry is not complete.

    everywhere: run on all of the recipe's ranks and hosts instead of in one process here. env: added to the recipe's
    environment variables; not written to any file. places_of_job: keys of the job that are set to subdirectories of the
    entry. watched: returns a context manager for the entry's directory, entered while the processes run. Raises
    LaunchError if a process fails.
    """
    options = workspace.recipe.launch
    ranks: dict[str, Any] = {}
    if everywhere:
        ranks = {
            "ranks": count_ranks(options),
            "port": options.rendezvous.port,
            "cluster": find_cluster(options),
        }

    def make(directory: Path) -> dict[str, Any]:
        job_path = directory / "job.json"
        directories = {name: str(directory / name) for name in places_of_job}
        write_atomic(job_path, json.dumps({**job, **directories}, indent=1) + "\n")
        with watched(directory):
            launch(module, job_path, threads=options.threads, log=log, env={**options.env, **(env or {})}, **ranks)
        return {"job": {**job, **directories}}

    directory = workspace.store.produce(kind, key, make)
    log(f"{module}: {directory}")
    return directory


def identity(store: Store, value: Any) -> Any:
    """Returns what identifies a job's input, independent of its path: the name of a store entry, the digests of the
    files of a model directory, or any other value (a hub name, a setting) itself."""
    path = Path(value) if isinstance(value, str | Path) else None
    if path is None or (not path.is_absolute() and not path.is_dir()):
        return value
    if path.resolve().is_relative_to(store.root):
        return path.resolve().relative_to(store.root).as_posix()
    return named_digests(path, filter(Path.is_file, path.iterdir()), FileDigests(store).digest)
