"""Runs a job in processes of their own, one per rank, on one machine or several, and leaves none behind."""

import contextlib
import math
import os
import queue
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from flows.hosts import Cluster
from flows.nodes import LaunchError, Lost, Nodes
from flows.processes import Closed, Ended, Event, Line, PortInUse, Processes, check_port, rank_environment

GRACE = 60.0  # seconds for the ranks to write a checkpoint when they are told to stop
SHOWN = 30  # last lines of a failed rank

__all__ = ["LaunchError", "check_rendezvous", "launch"]


def launch(
    module: str,
    job: Path,
    ranks: int = 1,
    threads: int | None = None,
    log: Callable[[str], None] = print,
    env: Mapping[str, str] | None = None,
    grace: float = GRACE,
    port: int | None = None,
    cluster: Cluster | None = None,
) -> None:
    """Runs `python -m MODULE JOB` once per rank, with the environment that torchrun gives, and waits for the end.

    threads: CPU threads of a rank; the cores divided by the ranks where absent. log: is given every line of output.
    env: added to the ranks' environment. port: where they meet; a free one where absent. cluster: the machines, in
    place of `ranks` and `port`. If anything is raised here, as when a Prefect run is cancelled, or if a rank fails or a
    machine is lost, the ranks are told to stop (SIGTERM), have `grace` seconds to save, and are killed with all that
    they started. They know by their standard input, which is held open here or by the agent of their machine
    (flows/node_agent.py), that this process lives (model/training/lifeline.py). It is torchrun without its agent: that
    gives each rank a session of its own, so that nobody can end the ranks for certain when the agent is killed, and
    takes seconds to import.

    Raises LaunchError when a rank fails, with the error of the one that failed first, when a machine cannot be reached
    or when the port is in use. Call it from any thread or process.
    """
    watch = _Watch(module, grace)
    try:
        if cluster is None:
            watch.expect({"": range(ranks)})
            watch.places = here = Processes(watch.events.put)
            own_port = port or _free_port()
            _check_port(port)
            for rank in range(ranks):
                own = rank_environment(rank, rank, ranks, ranks, "127.0.0.1", own_port, threads)
                here.start(rank, [sys.executable, "-m", module, str(job)], {**os.environ, **own, **(env or {})})
        else:
            log(f"{module}: on {cluster.describe()}")
            watch.expect({host.name: numbers for host, numbers in cluster.ranks().items()})
            watch.places = nodes = Nodes(cluster, watch.events.put, log)
            nodes.connect(job)
            nodes.run(module, job, threads, env or {}, grace)
        try:
            for line in watch.lines():
                log(line)
        except BaseException:
            watch.stop()
            for line in watch.lines():  # what the ranks say while they save
                log(line)
            raise
    finally:
        if watch.places is not None:
            watch.places.kill()
    watch.raise_failure()


def check_rendezvous(cluster: Cluster | None, port: int | None, shared: Path, log: Callable[[str], None]) -> None:
    """Whether ranks could meet: before hours of work for them. shared: a directory that all hosts must see; a file is
    made and removed in it. Raises LaunchError."""
    if cluster is None:
        _check_port(port)
        return
    nodes = Nodes(cluster, lambda event: None, log)
    probe = shared / f".hosts-{socket.gethostname()}-{os.getpid()}"
    try:
        shared.mkdir(parents=True, exist_ok=True)
        probe.write_text(f"{time.time_ns()}\n")
        nodes.connect(probe)
    finally:
        nodes.kill()
        probe.unlink(missing_ok=True)


class _Watch:
    """What the ranks print and how they end, wherever they run."""

    def __init__(self, module: str, grace: float) -> None:
        self.module, self.grace, self.deadline = module, grace, math.inf
        self.events: queue.Queue[Event | Lost] = queue.Queue()
        self.places: Processes | Nodes | None = None  # what stops and ends them
        self._host: dict[int, str] = {}  # of each rank, "" for this machine
        self._last: dict[int, deque[str]] = {}  # of each rank, its last lines
        self._running: set[int] = set()
        self._open: set[int] = set()  # ranks whose output has not ended
        self._codes: dict[int, int] = {}
        self._lost: dict[str, str] = {}  # host → why
        self._trouble: dict[int, int] = {}  # rank → when it failed, as a place in the order of all that was seen
        self._seen = 0

    def expect(self, ranks_of: Mapping[str, range]) -> None:
        self._host = {rank: host for host, ranks in ranks_of.items() for rank in ranks}
        self._last = {rank: deque(maxlen=SHOWN) for rank in self._host}
        self._running, self._open = set(self._host), set(self._host)

    def lines(self) -> Iterator[str]:
        """What they print, until all have ended or the deadline has passed. If one fails, the others are stopped."""
        while (self._running or self._open) and time.monotonic() < self.deadline:
            with contextlib.suppress(queue.Empty):
                event = self.events.get(timeout=0.1)
                self._seen += 1
                if isinstance(event, Line):
                    self._last[event.rank].append(event.text)
                    if event.text.startswith("Traceback "):
                        self._trouble.setdefault(event.rank, self._seen)
                    yield event.text if event.rank == 0 else f"[rank {event.rank}] {event.text}"
                elif isinstance(event, Closed):
                    self._open.discard(event.rank)
                elif isinstance(event, Ended):
                    self._running.discard(event.rank)
                    self._codes[event.rank] = event.code
                    if event.code:
                        self._fail(event.rank)
                else:
                    self._lose(event)
            if not self._running:  # a child that keeps the output open after all ranks have ended is given a moment
                self.deadline = min(self.deadline, time.monotonic() + 5)

    def _fail(self, rank: int) -> None:
        self._trouble.setdefault(rank, self._seen)
        self.stop()

    def _lose(self, lost: Lost) -> None:
        """Nothing more will be heard of a host's ranks."""
        gone = [rank for rank, host in self._host.items() if host == lost.host]
        self._lost[lost.host] = lost.why
        for rank in gone:
            if rank in self._running:
                self._fail(rank)
        self._running.difference_update(gone)
        self._open.difference_update(gone)

    def stop(self) -> None:
        """Tells all to stop, once, and sets the deadline."""
        if self.deadline == math.inf:
            self.deadline = time.monotonic() + self.grace
            if self.places is not None:
                self.places.stop()

    def raise_failure(self) -> None:
        """Raises LaunchError with the error of the rank that failed first; the others fail since it is gone."""
        failed = [rank for rank in self._trouble if self._codes.get(rank) != 0]
        if not failed:
            return
        rank = min(failed, key=self._trouble.__getitem__)
        host, code = self._host[rank], self._codes.get(rank)
        who = f"rank {rank} on {host}" if host else f"rank {rank}"
        shown = "".join(f"\n{line}" for line in self._last[rank])
        if code is None and host in self._lost:
            raise LaunchError(f"{self.module}: the connection to {host} was lost ({self._lost[host]}); {who}:{shown}")
        if code is None:
            raise LaunchError(f"{self.module}: {who} failed, did not end and was killed:{shown}")
        if code < 0:
            what = f"was killed by {signal.Signals(-code).name} (did the machine run out of memory?)"
            raise LaunchError(f"{self.module}: {who} {what}")
        raise LaunchError(f"{self.module}: {who} failed (exit code {code}):{shown}")


def _check_port(port: int | None) -> None:
    try:
        if port is not None:
            check_port(port)
    except PortInUse as error:
        raise LaunchError(str(error)) from None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
