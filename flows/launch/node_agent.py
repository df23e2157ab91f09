"""`python -m flows.launch.node_agent`: runs a host's ranks for a launcher on another host, and ends them when it is
gone.

The agent reads orders from standard input and reports its ranks' events on standard output, both as JSON lines. If the
input ends or falls silent, the launcher or the connection is gone: the ranks receive SIGTERM, have the grace period to
save a checkpoint, and are killed. It imports only the standard library and psutil, so that it starts quickly.
"""

import contextlib
import hashlib
import json
import math
import os
import queue
import socket
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from flows.launch.processes import BEAT, Closed, Ended, Event, PortInUse, Processes, listen, rank_environment

FILE_TIMEOUT = 10.0  # seconds until a file written on another host must be visible: network file systems cache listings
CONNECT_TIMEOUT = 5.0  # timeout in seconds for connecting to the first host
GREETING = b"honeybee"


class Agent:
    """Executes orders until it receives `kill`, or until the launcher is gone and the ranks have ended."""

    def __init__(self) -> None:
        self._inbox: queue.Queue[Event | dict[str, Any]] = queue.Queue()
        self._cut = threading.Event()  # set when standard input ends
        self._outbox: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._processes = Processes(self._inbox.put)
        self._running: set[int] = set()
        self._open: set[int] = set()
        self._silence, self._grace = 60.0, 60.0
        self._interface: str | None = None  # network interface that connects the hosts
        self._listener: socket.socket | None = None

    def serve(self) -> None:
        writer = threading.Thread(target=self._write, name="output", daemon=True)
        writer.start()
        threading.Thread(target=self._read, name="orders", daemon=True).start()
        received, sent, deadline, orphaned = time.monotonic(), 0.0, math.inf, False
        try:
            while not (orphaned and not self._running and not self._open) and time.monotonic() < deadline:
                if time.monotonic() - sent > min(BEAT, self._silence / 4):
                    sent = time.monotonic()
                    self._outbox.put({"kind": "beat"})
                if not orphaned and (self._cut.is_set() or time.monotonic() - received > self._silence):
                    orphaned, deadline = True, time.monotonic() + self._grace
                    self._processes.stop()
                try:
                    item = self._inbox.get(timeout=0.5)
                except queue.Empty:
                    continue
                if not isinstance(item, dict):
                    self._report(item)
                elif item["order"] == "kill":
                    return
                else:
                    self._obey(item)
                    received = time.monotonic()
        finally:
            self._processes.kill()
            self._outbox.put(None)
            writer.join(2)

    def _obey(self, order: dict[str, Any]) -> None:
        name = order.pop("order")
        if name in ("prepare", "reach"):
            try:
                (self._prepare if name == "prepare" else self._reach)(**order)
                problem = None
            except (OSError, PortInUse) as error:
                problem = str(error)
            self._outbox.put({"kind": "answer", "problem": problem})
        elif name == "run":
            self._run(**order)
        elif name == "stop":
            self._processes.stop()

    def _prepare(self, directory: str, file: str, sha256: str, silence: float, port: int | None) -> None:
        """Checks that this host sees the launcher's files, and listens at `port` until the ranks start."""
        self._silence = silence
        try:
            os.chdir(directory)
        except OSError as error:
            raise OSError(
                f"cannot change to {directory}, the launcher's working directory ({error.strerror}): it must exist on "
                "all hosts"
            ) from None
        deadline = time.monotonic() + FILE_TIMEOUT
        while not (Path(file).is_file() and hashlib.sha256(Path(file).read_bytes()).hexdigest() == sha256):
            if time.monotonic() > deadline:
                raise OSError(
                    f"{file}, written by the launcher, is not visible on this host: the store must be a directory "
                    "that all hosts share under the same path"
                )
            time.sleep(0.2)
        if port is not None:
            self._listener = listen(port)
            threading.Thread(target=self._accept, args=(self._listener,), name="rendezvous", daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                other, _ = listener.accept()
            except OSError:  # the listener was closed
                return
            with other, contextlib.suppress(OSError):
                self._interface = _interface(other)
                other.settimeout(CONNECT_TIMEOUT)
                other.sendall(GREETING)
                other.recv(1)  # let the other side close first, so that this port is free immediately

    def _reach(self, address: str, port: int) -> None:
        try:
            with socket.create_connection((address, port), timeout=CONNECT_TIMEOUT) as first:
                self._interface = _interface(first)
                if first.recv(len(GREETING)) != GREETING:  # sent after the first host has found its interface
                    raise ConnectionError("another program is listening there")
        except OSError as error:
            raise OSError(
                f"cannot reach the first host at {address}:{port} ({error}): set launch.rendezvous.host to an address "
                "of it that the other hosts can reach, and open the port in the firewalls"
            ) from None

    def _run(
        self,
        command: list[str],
        first: int,
        count: int,
        world: int,
        address: str,
        port: int,
        threads: int | None,
        sent: dict[str, str],
        env: dict[str, str],
        grace: float,
    ) -> None:
        """Starts ranks `first` … `first + count - 1` of `world`. The parameters are the fields of the launcher's
        order."""
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        self._grace = grace
        # By default Gloo uses the address of the host's own name, which is often 127.0.1.1 in /etc/hosts.
        found = {"GLOO_SOCKET_IFNAME": self._interface} if self._interface else {}
        for local_rank in range(count):
            rank = first + local_rank
            own = rank_environment(rank, local_rank, world, count, address, port, threads)
            self._running.add(rank)
            self._open.add(rank)
            self._processes.start(rank, [sys.executable, *command], {**found, **os.environ, **sent, **own, **env})

    def _report(self, event: Event) -> None:
        if isinstance(event, Ended):
            self._running.discard(event.rank)
        elif isinstance(event, Closed):
            self._open.discard(event.rank)
        self._outbox.put({"kind": type(event).__name__, **asdict(event)})

    def _read(self) -> None:
        for line in sys.stdin:
            self._inbox.put(json.loads(line))
        self._cut.set()

    def _write(self) -> None:
        """Runs in its own thread, so that only this one blocks if the launcher stops reading."""
        while (message := self._outbox.get()) is not None:
            try:
                sys.stdout.write(json.dumps(message) + "\n")
                sys.stdout.flush()
            except OSError:  # the connection is gone; `_read` notices it too
                return


def _interface(connection: socket.socket) -> str | None:
    """Returns the network interface of the local end of a connection."""
    own = connection.getsockname()[0].removeprefix("::ffff:")
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address.partition("%")[0] == own for address in addresses):
            return name
    return None


if __name__ == "__main__":
    Agent().serve()
    os._exit(0)  # threads that are blocked on a lost connection must not delay the exit
