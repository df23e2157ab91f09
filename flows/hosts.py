"""The machines that train a recipe: its hostfile, read when they are needed."""

import re
import shlex
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flows.recipe_launch import Launch

_LINE = re.compile(r"(?P<name>\S+)\s+slots=(?P<slots>\d+)")
_NAME = re.compile(r"(\w[\w.-]*@)?\w[\w.:-]*")  # never an option of the command that connects
PORT = 29500  # torchrun's


class HostfileError(ValueError):
    """A hostfile that says no machines; the message names file, line and remedy."""


@dataclass(frozen=True)
class Host:
    name: str
    slots: int  # ranks that it runs

    @property
    def is_here(self) -> bool:
        """Whether it is this machine, by its name; else a command starts its ranks."""
        return self.name in ("localhost", "127.0.0.1", "::1", socket.gethostname(), socket.getfqdn())


@dataclass(frozen=True)
class Cluster:
    """hosts: the first has rank 0. address, port: where its rank 0 listens for all others. connect: the command that
    starts a program on `{host}`. python: the interpreter there. silence: seconds without a word after which a
    connection counts as lost, on either side."""

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
        """Which ranks each runs, in the order of the file."""
        ranks, first = {}, 0
        for host in self.hosts:
            ranks[host] = range(first, first + host.slots)
            first += host.slots
        return ranks

    def describe(self) -> str:
        """`a (ranks 0-3), b (ranks 4-7), which meet at a:29500`"""
        parts = [
            f"{host.name} ({f'ranks {ranks[0]}-{ranks[-1]}' if len(ranks) > 1 else f'rank {ranks[0]}'})"
            for host, ranks in self.ranks().items()
        ]
        return f"{', '.join(parts)}, which meet at {self.address}:{self.port}"


def read_hostfile(path: Path) -> tuple[Host, ...]:
    """Reads DeepSpeed's format: `NAME slots=N` a line; `#` begins a comment. Raises HostfileError."""
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
            raise HostfileError(f"{path}, line {number}: {match['name']} stands twice: give it one line with all slots")
        if int(match["slots"]) == 0:
            raise HostfileError(f"{path}, line {number}: {match['name']} has no slots: raise them, or leave it out")
        hosts[match["name"]] = Host(match["name"], int(match["slots"]))
    if not hosts:
        raise HostfileError(f"{path} names no host: give lines of the form `host slots=N`")
    here = [host.name for host in hosts.values() if host.is_here]
    if len(here) > 1:
        raise HostfileError(f"{path}: {' and '.join(here)} are both this machine: give it one line with all slots")
    return tuple(hosts.values())


def find_cluster(launch: "Launch") -> Cluster | None:
    """The machines; None without a hostfile, which means this one alone. Raises HostfileError."""
    if launch.hostfile is None:
        return None
    hosts = read_hostfile(launch.hostfile)
    first, rendezvous, python = hosts[0], launch.rendezvous, launch.python or sys.executable
    if len(hosts) > 1 and rendezvous.host is None and first.name in ("localhost", "127.0.0.1", "::1"):
        raise HostfileError(
            f"{launch.hostfile}: the other hosts cannot reach {first.name}: write the first host by the name they "
            "know, or set launch.rendezvous.host"
        )
    if shlex.quote(python) != python:
        raise HostfileError(f"launch.python: {python!r} has characters that a shell on the other host would read")
    address = rendezvous.host or first.name.rpartition("@")[2]
    return Cluster(hosts, address, rendezvous.port or PORT, launch.connect, python)


def count_ranks(launch: "Launch") -> int:
    """How many processes train, on all machines. Raises HostfileError."""
    cluster = find_cluster(launch)
    return launch.ranks or 1 if cluster is None else cluster.world
