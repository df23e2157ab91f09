"""Two network namespaces joined by a virtual cable, which act as two hosts."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from flows.launch.hosts import Cluster, Host

INTERFACE = "cable0"


@dataclass(frozen=True)
class TwoHosts:
    first: str
    second: str
    address = "10.213.77.1"  # of the first host; reachable only from the two hosts

    @property
    def cluster(self) -> Cluster:
        """A cluster with one rank on each host."""
        hosts = (Host(self.first, 1), Host(self.second, 1))
        return Cluster(hosts, self.address, 29517, ("ip", "netns", "exec", "{host}"), sys.executable)

    def pids(self) -> list[int]:
        """Returns the pids of all processes that are running on the hosts."""
        found = [_ip("netns", "pids", name).split() for name in (self.first, self.second)]
        return [int(pid) for pids in found for pid in pids]

    @contextlib.contextmanager
    def cut(self) -> Iterator[None]:
        """Disconnects the cable within the context."""
        _ip("-n", self.second, "link", "set", INTERFACE, "down")
        try:
            yield
        finally:
            _ip("-n", self.second, "link", "set", INTERFACE, "up")


class NotPermitted(RuntimeError):
    """Network namespaces cannot be created here."""


@contextlib.contextmanager
def two_hosts() -> Iterator[TwoHosts]:
    """Creates the hosts, and removes them and kills their processes at the end. Raises NotPermitted."""
    if shutil.which("ip") is None:
        raise NotPermitted("the `ip` command (iproute2) is not installed")
    hosts = TwoHosts(f"bee-{os.getpid()}-a", f"bee-{os.getpid()}-b")
    with contextlib.ExitStack() as cleanup:
        for name in (hosts.first, hosts.second):
            _ip("netns", "add", name)
            cleanup.callback(_remove, name)
        one, two = ("netns", hosts.first), ("netns", hosts.second)
        _ip("link", "add", INTERFACE, *one, "type", "veth", "peer", "name", INTERFACE, *two)
        for name, address in ((hosts.first, hosts.address), (hosts.second, "10.213.77.2")):
            _ip("-n", name, "address", "add", f"{address}/24", "dev", INTERFACE)
            for interface in ("lo", INTERFACE):
                _ip("-n", name, "link", "set", interface, "up")
        _ip("netns", "exec", hosts.first, "true")
        yield hosts


def _remove(name: str) -> None:
    for pid in _ip("netns", "pids", name).split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    _ip("netns", "delete", name)


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotPermitted(f"`ip {' '.join(words)}`: {done.stderr.strip()}")
    return done.stdout


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
