"""Checks what surrounds a run: hosts, GPUs, the judge, and the URL to which shards are copied."""

import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from urllib.parse import urlsplit

from flows.launch.hosts import find_cluster
from flows.launch.launch import check_rendezvous
from flows.preflight.outcome import Check, Status, tried
from flows.recipe.recipe import Recipe, RecipeError
from pipelines.shards.remote import ShardFiles


def check_hosts(recipe: Recipe, log: Callable[[str], None] = print) -> None:
    """Checks that this host and those of the hostfile can run the recipe's ranks. Raises RecipeError if GPUs are
    missing, LaunchError if a host cannot be reached or the rendezvous port is in use."""
    cluster = find_cluster(recipe.launch)
    here = recipe.launch.ranks or 1
    if cluster is not None:  # single-process jobs always run here
        here = max(1, sum(host.slots for host in cluster.hosts if host.is_here))
    _check_gpus(recipe, here)
    check_rendezvous(cluster, recipe.launch.rendezvous.port, recipe.paths.store.resolve(), log)


def _check_gpus(recipe: Recipe, here: int) -> None:
    import torch

    if recipe.launch.device == "cuda" and torch.cuda.device_count() < here:
        raise RecipeError(
            f"launch: {here} ranks on cuda need {here} GPUs, but this host has {torch.cuda.device_count()}: lower "
            f"{'launch.ranks' if recipe.launch.hostfile is None else 'its slots'}, change launch.device, or use "
            "another host"
        )


def inspect_surroundings(recipe: Recipe) -> Iterator[Check]:
    """Yields what only the run itself can check for certain: hosts, GPUs, the judge and the URL of the shards."""
    cluster = find_cluster(recipe.launch)
    if cluster is not None:
        yield Check("launch.hostfile", Status.NOT_CHECKED, "the run asks the hosts before it starts")
    else:
        missing = list(tried("launch.ranks", _check_gpus, recipe, recipe.launch.ranks or 1))
        yield from (replace(each, status=Status.NOT_CHECKED) for each in missing)  # it may run on another host
    judge = recipe.evaluation.judge
    if judge is not None and judge.secret is not None:
        yield Check("evaluation.judge.secret", Status.NOT_CHECKED, "the run reads the secret block before it starts")
    if judge is not None:
        yield _reachable("evaluation.judge", judge.url)
    if recipe.paths.remote is not None:
        problems = list(tried("paths.remote", ShardFiles(recipe.paths.remote).sizes))
        yield from (replace(each, status=Status.NOT_CHECKED) for each in problems)
        if not problems:
            yield Check("paths.remote", Status.OK, "it can be listed; nothing was written")


def _reachable(item: str, url: str) -> Check:
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=5).close()
    except OSError as error:
        return Check(item, Status.NOT_CHECKED, f"{url} does not accept a connection now: {error}")
    return Check(item, Status.OK, f"{url} accepts connections; neither its model nor the key was tried")
