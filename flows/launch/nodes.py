"""The launcher's end of the connections to the agents on the hosts (flows/launch/node_agent.py)."""

import contextlib
import hashlib
import json
import os
import queue
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.launch.hosts import Cluster, Host
from flows.launch.processes import BEAT, Closed, Ended, Event, Line

ANSWER_TIMEOUT = 40.0  # timeout in seconds for connecting to a host and for an answer of its agent
LEAVE_TIMEOUT = 5.0  # seconds for agents to end their ranks before the connections are closed
ENV_PREFIXES = (
    "HF_",
    "TRANSFORMERS_",
    "NCCL_",
    "WANDB_",
)  # prefixes of environment variables that are passed on to all ranks
ROOT = Path(__file__).resolve().parents[2]  # added to PYTHONPATH, in case this package is not installed
EVENTS: dict[str, Callable[..., Event]] = {kind.__name__: kind for kind in (Line, Closed, Ended)}


class LaunchError(RuntimeError):
    """Raised if ranks fail or cannot be started; the message has the first rank's error, or says what to do."""


@dataclass(frozen=True)
class Lost:
    """The connection to a host is lost."""

    host: str
    why: str


class Nodes:
    """The agents of all hosts. `tell` receives the events of their ranks, `log` the connecting command's own output."""

    def __init__(self, cluster: Cluster, tell: Callable[[Event | Lost], None], log: Callable[[str], None]) -> None:
        self.cluster, self._tell, self._log = cluster, tell, log
        self._nodes: list[_Node] = []
        self._ended = threading.Event()

    def connect(self, job: Path) -> None:
        """Starts an agent on every host, which checks that it sees the job file and can reach the first host. Raises
        LaunchError."""
        cluster = self.cluster
        for host in cluster.hosts:
            self._nodes.append(_Node(host, cluster, self._tell, self._log))
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()
        digest = hashlib.sha256(job.read_bytes()).hexdigest()
        prepare = {"directory": str(Path.cwd()), "file": str(job), "sha256": digest, "silence": cluster.silence}
        for node in self._nodes:
            node.send("prepare", **prepare, port=cluster.port if node is self._nodes[0] else None)
        for node in self._nodes:
            node.answer()
        for node in self._nodes[1:]:
            node.send("reach", address=cluster.address, port=cluster.port)
        for node in self._nodes[1:]:
            node.answer()

    def run(self, module: str, job: Path, threads: int | None, env: Mapping[str, str], grace: float) -> None:
        """Starts the ranks. Raises LaunchError."""
        cluster = self.cluster
        sent = {key: value for key, value in os.environ.items() if key.startswith(ENV_PREFIXES)}
        if path := os.environ.get("PYTHONPATH"):
            sent["PYTHONPATH"] = path
        order = {
            "command": ["-m", module, str(job)],
            "world": cluster.world,
            "address": cluster.address,
            "port": cluster.port,
            "threads": threads,
            "sent": sent,
            "env": dict(env),
            "grace": grace,
        }
        for node, ranks in zip(self._nodes, cluster.ranks().values(), strict=True):
            node.send("run", first=ranks.start, count=len(ranks), **order)

    def stop(self) -> None:
        """Sends SIGTERM to all ranks."""
        for node in self._nodes:
            node.send("stop")

    def kill(self) -> None:
        """Makes every agent kill its ranks and exit, and closes the connections."""
        self._ended.set()
        for node in self._nodes:
            node.leave()
        deadline = time.monotonic() + LEAVE_TIMEOUT
        for node in self._nodes:
            node.cut(deadline)

    def _beat(self) -> None:
        while not self._ended.wait(min(BEAT, self.cluster.silence / 4)):
            for node in self._nodes:
                node.send("beat")
                node.check()


class _Node:
    """The agent of one host, started by launch.connect, or directly on this host."""

    def __init__(
        self, host: Host, cluster: Cluster, tell: Callable[[Event | Lost], None], log: Callable[[str], None]
    ) -> None:
        self.host, self._silence, self._tell, self._log = host, cluster.silence, tell, log
        agent = [sys.executable if host.is_here else cluster.python, "-m", "flows.launch.node_agent"]
        self._command = ["env", f"PYTHONPATH={ROOT}", *agent]
        if not host.is_here:
            if self._command != [shlex.quote(word) for word in self._command]:  # the remote end may be a shell or not
                raise LaunchError(
                    f"{ROOT}: a shell on {host.name} would misinterpret this path: install to a path without special "
                    "characters"
                )
            self._command = [*(word.replace("{host}", host.name) for word in cluster.connect), *self._command]
        self._answers: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._output: deque[str] = deque(maxlen=10)  # the last lines of the connecting command itself
        self._lock = threading.Lock()
        self._received, self._leaving, self._lost = time.monotonic(), False, False
        pipe = subprocess.PIPE
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=pipe,
                stdout=pipe,
                stderr=pipe,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            raise LaunchError(f"launch.connect: cannot run {self._command[0]}: {error.strerror}") from None
        self._readers = [
            threading.Thread(target=work, name=f"{host.name} {work.__name__}", daemon=True)
            for work in (self._read_errors, self._read)
        ]
        for thread in self._readers:
            thread.start()

    def send(self, order: str, **more: Any) -> None:
        """Sends an order. Never raises: `_read` reports a lost connection."""
        stdin = self._process.stdin
        assert stdin is not None
        with self._lock, contextlib.suppress(OSError, ValueError):  # ValueError: stdin is closed
            stdin.write(json.dumps({"order": order, **more}) + "\n")
            stdin.flush()

    def answer(self) -> None:
        """Waits for the answer to the last order. Raises LaunchError if it failed or does not arrive in time."""
        try:
            answer = self._answers.get(timeout=ANSWER_TIMEOUT)
        except queue.Empty:
            raise LaunchError(
                f"{self._failure_prefix()} did not answer within {ANSWER_TIMEOUT:.0f} seconds{self._output_suffix()}"
            ) from None
        if answer is None:
            raise LaunchError(f"{self._failure_prefix()} {self._end()}")
        if answer["problem"]:
            raise LaunchError(f"{self.host.name}: {answer['problem']}")

    def check(self) -> None:
        if time.monotonic() - self._received > self._silence:
            self._lose(f"no message for {self._silence:g} seconds")

    def leave(self) -> None:
        self._leaving = True
        self.send("kill")
        with self._lock, contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()

    def cut(self, deadline: float) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(max(0.0, deadline - time.monotonic()))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _read(self) -> None:
        output = self._process.stdout
        assert output is not None
        with output:
            for line in output:
                self._received = time.monotonic()
                self._take(line)
        self._readers[0].join(1)  # the command may print why it ended
        self._answers.put(None)
        self._lose(self._end())

    def _take(self, line: str) -> None:
        try:
            message = json.loads(line)
            kind = message.pop("kind")
        except (ValueError, AttributeError, KeyError, TypeError):  # not from the agent: a login shell's greeting
            self._say(line)
            return
        if kind == "answer":
            self._answers.put(message)
        elif kind in EVENTS:
            self._tell(EVENTS[kind](**message))

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as output:
            for line in output:
                self._say(line)

    def _say(self, line: str) -> None:
        self._output.append(line.rstrip())
        self._log(f"[{self.host.name}] {line.rstrip()}")

    def _lose(self, why: str) -> None:
        if not self._leaving and not self._lost:
            self._lost = True
            self._tell(Lost(self.host.name, why))

    def _failure_prefix(self) -> str:
        return f"cannot start ranks on {self.host.name}: `{shlex.join(self._command)}`"

    def _end(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        return f"ended with exit code {self._process.returncode}{self._output_suffix()}"

    def _output_suffix(self) -> str:
        return ": " + "; ".join(self._output) if self._output else ""
