"""Runs a job in one process per rank, on one or several hosts, and makes sure that no process outlives the job."""

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

from flows.launch.hosts import Cluster
from flows.launch.nodes import LaunchError, Lost, Nodes
from flows.launch.processes import Closed, Ended, Event, Line, PortInUse, Processes, check_port, rank_environment

GRACE = 60.0  # seconds for the ranks to write a checkpoint after SIGTERM
SHOWN = 30  # last lines of a failed rank in the error message

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
    """Runs `python -m MODULE JOB` once per rank, with torchrun's environment variables, and waits until all have ended.

    threads: CPU threads per rank; default: cores / ranks. log: receives every line of output. env: added to the ranks'
    environment. port: rendezvous port; default: a free one. cluster: the hosts, instead of `ranks` and `port`.
    There is a parameter for each thing that a launcher of processes lets one choose.

    If an exception is raised here (e.g. a Prefect run is cancelled), a rank fails or a host is lost, the ranks receive
    SIGTERM, have `grace` seconds to save a checkpoint, and are then killed with all their children. If this process
    dies, the ranks notice the end of their standard input, which this process or the agent of their host
    (flows/launch/node_agent.py) holds open (model/lifeline.py). torchrun is not used because its agent starts
    each rank in a separate session, so the ranks may survive if the agent is killed, and because it takes seconds to
    import.

    Raises LaunchError if a rank fails, with the error of the rank that failed first, if a host cannot be reached, or if
    the port is in use. It can be called from any thread or process.
    """
    watch = _Watch(module, grace)
    try:
        if cluster is None:
            watch.expect({"": range(ranks)})
            watch.runner = here = Processes(watch.events.put)
            own_port = port or _free_port()
            _check_port(port)
            for rank in range(ranks):
                own = rank_environment(rank, rank, ranks, ranks, "127.0.0.1", own_port, threads)
                here.start(rank, [sys.executable, "-m", module, str(job)], {**os.environ, **own, **(env or {})})
        else:
            log(f"{module}: on {cluster.describe()}")
            watch.expect({host.name: numbers for host, numbers in cluster.ranks().items()})
            watch.runner = nodes = Nodes(cluster, watch.events.put, log)
            nodes.connect(job)
            nodes.run(module, job, threads, env or {}, grace)
        try:
            for line in watch.lines():
                log(line)
        except BaseException:
            watch.stop()
            for line in watch.lines():  # the ranks' output while they save
                log(line)
            raise
    finally:
        if watch.runner is not None:
            watch.runner.kill()
    watch.raise_failure()


def check_rendezvous(cluster: Cluster | None, port: int | None, shared: Path, log: Callable[[str], None]) -> None:
    """Checks that the ranks will be able to connect, before hours of other work. shared: a directory that all hosts
    must see; a temporary file is written to it. Raises LaunchError."""
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
    """Collects the ranks' output and exit codes, on whichever host they run."""

    def __init__(self, module: str, grace: float) -> None:
        self.module, self.grace, self.deadline = module, grace, math.inf
        self.events: queue.Queue[Event | Lost] = queue.Queue()
        self.runner: Processes | Nodes | None = None  # stops and kills the ranks
        self._host: dict[int, str] = {}  # rank → its host, "" for this one
        self._last: dict[int, deque[str]] = {}  # rank → its last lines
        self._running: set[int] = set()
        self._open: set[int] = set()  # ranks whose output has not ended
        self._codes: dict[int, int] = {}
        self._lost: dict[str, str] = {}  # host → reason
        self._trouble: dict[int, int] = {}  # rank → index of the event at which it failed
        self._seen = 0

    def expect(self, ranks_of: Mapping[str, range]) -> None:
        self._host = {rank: host for host, ranks in ranks_of.items() for rank in ranks}
        self._last = {rank: deque(maxlen=SHOWN) for rank in self._host}
        self._running, self._open = set(self._host), set(self._host)

    def lines(self) -> Iterator[str]:
        """Yields the ranks' output until all have ended or the deadline passes. Stops all ranks if one fails."""
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
            if not self._running:  # a child process may keep the output open for a while after its rank has ended
                self.deadline = min(self.deadline, time.monotonic() + 5)

    def _fail(self, rank: int) -> None:
        self._trouble.setdefault(rank, self._seen)
        self.stop()

    def _lose(self, lost: Lost) -> None:
        """Counts a lost host's running ranks as failed."""
        gone = [rank for rank, host in self._host.items() if host == lost.host]
        self._lost[lost.host] = lost.why
        for rank in gone:
            if rank in self._running:
                self._fail(rank)
        self._running.difference_update(gone)
        self._open.difference_update(gone)

    def stop(self) -> None:
        """Sends SIGTERM to all ranks and sets the deadline; only the first call has an effect."""
        if self.deadline == math.inf:
            self.deadline = time.monotonic() + self.grace
            if self.runner is not None:
                self.runner.stop()

    def raise_failure(self) -> None:
        """Raises LaunchError with the error of the rank that failed first, since the others fail because of it."""
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
            raise LaunchError(f"{self.module}: {who} failed, did not exit and was killed:{shown}")
        if code < 0:
            what = f"was killed by {signal.Signals(-code).name} (did the host run out of memory?)"
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
