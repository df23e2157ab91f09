"""Runs one `python -m …` job of several ranks that produces a store entry."""

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows.launch.hosts import count_ranks, find_cluster
from flows.launch.launch import launch
from flows.runs.workspace import Log, Workspace
from pipelines.core.files import named_digests, write_atomic
from pipelines.core.integrity import lists_checksums
from pipelines.core.store import FileDigests, Store


@dataclass(frozen=True)
class Job:
    """`python -m module job.json`. settings: the content of job.json; to it are added `directories`, its keys that name
    subdirectories of the store entry."""

    module: str
    settings: Mapping[str, Any]
    directories: Sequence[str] = ("output",)
    distributed: bool = False  # on all of the recipe's ranks and hosts instead of in one process here
    env: Mapping[str, str] = field(default_factory=dict)  # added to the recipe's, but not written to any file
    # Returns a context manager for the entry's directory, entered while the processes run.
    while_running: Callable[[Path], AbstractContextManager[object]] = contextlib.nullcontext
    history: str | None = None  # the subdirectory that Store.produce treats as history


def run_job(workspace: Workspace, kind: str, key: Mapping[str, Any], job: Job, log: Log) -> Path:
    """Returns the store entry of (kind, key), after running the job if the entry is not complete. Raises LaunchError if
    a process fails."""
    options = workspace.recipe.launch
    ranks: dict[str, Any] = {}
    if job.distributed:
        ranks = {
            "ranks": count_ranks(options),
            "port": options.rendezvous.port,
            "cluster": find_cluster(options),
        }

    def make(directory: Path) -> dict[str, Any]:
        job_path = directory / "job.json"
        content = {**job.settings, **{name: str(directory / name) for name in job.directories}}
        write_atomic(job_path, json.dumps(content, indent=1) + "\n")
        with job.while_running(directory):
            launch(job.module, job_path, threads=options.threads, log=log, env={**options.env, **job.env}, **ranks)
        return {"job": content}

    directory = workspace.store.produce(kind, key, make, job.history)
    log(f"{job.module}: {directory}")
    return directory


def identity(store: Store, value: Any) -> Any:
    """Returns what identifies a job's input, independent of its path: the name of a store entry, the digests of the
    files of a model directory, or any other value (a hub name, a setting) itself. Raises DamagedError if a directory
    that lists the checksums of its files is not as it was written."""
    path = Path(value) if isinstance(value, str | Path) else None
    if path is None or (not path.is_absolute() and not path.is_dir()):
        return value
    if lists_checksums(path):
        store.check(path)
    if path.resolve().is_relative_to(store.root):
        return path.resolve().relative_to(store.root).as_posix()
    return named_digests(path, filter(Path.is_file, path.iterdir()), FileDigests(store).digest)
