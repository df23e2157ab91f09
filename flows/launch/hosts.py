"""Reads a recipe's hostfile: the hosts that train it and evaluate its model."""

import re
import shlex
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flows.recipe.launch import Launch

_LINE = re.compile(r"(?P<name>\S+)\s+slots=(?P<slots>\d+)")
_NAME = re.compile(r"(\w[\w.-]*@)?\w[\w.:-]*")  # no leading dash: ssh would take the name for an option
PORT = 29500  # torchrun's default


class HostfileError(ValueError):
    """Raised for an invalid hostfile; the message names file and line and says what to do."""


@dataclass(frozen=True)
class Host:
    name: str
    slots: int  # number of ranks

    @property
    def is_here(self) -> bool:
        """Whether this is the local host, by its name. On any other host, launch.connect starts the ranks."""
        return self.name in ("localhost", "127.0.0.1", "::1", socket.gethostname(), socket.getfqdn())


@dataclass(frozen=True)
class Cluster:
    """The hosts of a job. The first host has rank 0, which listens at `address`:`port` for the other ranks. connect:
    the command that starts a program on `{host}`. python: the interpreter on the hosts. silence: seconds without a
    message after which either side considers the connection lost."""

    hosts: tuple[Host, ...]
    address: str
    port: int
    connect: tuple[str, ...]
    python: str
    silence: float = 60.0

    @property
    def world(self) -> int:
        return sum(host.slots for host in self.hosts)

    def ranks(self) -> dict[Host, range]:
        """Returns the ranks of each host, in the order of the hostfile."""
        ranks, first = {}, 0
        for host in self.hosts:
            ranks[host] = range(first, first + host.slots)
            first += host.slots
        return ranks

    def describe(self) -> str:
        """Returns e.g. `a (ranks 0-3), b (ranks 4-7), rendezvous at a:29500`."""
        parts = [
            f"{host.name} ({f'ranks {ranks[0]}-{ranks[-1]}' if len(ranks) > 1 else f'rank {ranks[0]}'})"
            for host, ranks in self.ranks().items()
        ]
        return f"{', '.join(parts)}, rendezvous at {self.address}:{self.port}"


def read_hostfile(path: Path) -> tuple[Host, ...]:
    """Reads a hostfile in DeepSpeed's format: lines `NAME slots=N`; `#` starts a comment. Raises HostfileError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise HostfileError(f"{path} cannot be read: {error}") from None
    hosts: dict[str, Host] = {}
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = _LINE.fullmatch(text)
        if match is None or not _NAME.fullmatch(match["name"]):
            raise HostfileError(f"{path}, line {number}: {text!r} is not of the form `host slots=N`")
        if match["name"] in hosts:
            raise HostfileError(
                f"{path}, line {number}: {match['name']} is listed twice: give it a single line with all its slots"
            )
        if int(match["slots"]) == 0:
            raise HostfileError(f"{path}, line {number}: {match['name']} has 0 slots: raise the number, or remove it")
        hosts[match["name"]] = Host(match["name"], int(match["slots"]))
    if not hosts:
        raise HostfileError(f"{path} lists no hosts: add lines of the form `host slots=N`")
    here = [host.name for host in hosts.values() if host.is_here]
    if len(here) > 1:
        raise HostfileError(f"{path}: {' and '.join(here)} are the same host: give it a single line with all its slots")
    return tuple(hosts.values())


def find_cluster(launch: "Launch") -> Cluster | None:
    """Returns the hosts of a recipe, or None without a hostfile, i.e. for this host only. Raises HostfileError."""
    if launch.hostfile is None:
        return None
    hosts = read_hostfile(launch.hostfile)
    first, rendezvous, python = hosts[0], launch.rendezvous, launch.python or sys.executable
    if len(hosts) > 1 and rendezvous.host is None and first.name in ("localhost", "127.0.0.1", "::1"):
        raise HostfileError(
            f"{launch.hostfile}: the other hosts cannot reach {first.name}: list the first host under a name that "
            "they can resolve, or set launch.rendezvous.host"
        )
    if shlex.quote(python) != python:
        raise HostfileError(f"launch.python: {python!r} has characters that a shell on the other host would interpret")
    address = rendezvous.host or first.name.rpartition("@")[2]
    return Cluster(hosts, address, rendezvous.port or PORT, launch.connect, python)


def count_ranks(launch: "Launch") -> int:
    """Returns the number of ranks on all hosts. Raises HostfileError."""
    cluster = find_cluster(launch)
    return launch.ranks or 1 if cluster is None else cluster.world
