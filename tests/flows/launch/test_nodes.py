"""Ranks on several hosts behave as on one, and after any failure no rank is left on any host.

The hosts are simulated on this one, with the two kinds of connecting commands: one that passes the words through a
shell at the remote end, like ssh, and one that executes the words directly, in a network namespace.
"""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from support.launched import Lines, gone, write_rank
from support.namespaces import TwoHosts, free_port

from flows.launch.hosts import Cluster, Host
from flows.launch.launch import check_rendezvous, launch
from flows.launch.nodes import LaunchError

# Like ssh, joins the words and passes them to a shell.
SHELL = ("sh", "-c", 'shift; exec sh -c "$*"', "sh", "{host}")


class NodeLines(Lines):
    def __call__(self, line: str) -> None:
        super().__call__(line.partition("] ")[2] if line.startswith("[rank") else line)


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return write_rank(tmp_path)


@pytest.fixture
def job(tmp_path: Path) -> Path:
    return tmp_path / "job.json"


@pytest.fixture
def cluster() -> Cluster:
    return Cluster((Host("east", 2), Host("west", 1)), "127.0.0.1", free_port(), SHELL, sys.executable)


def agents() -> list[psutil.Process]:
    """Returns the agents among this process's descendants, oldest first."""
    below = [each for each in psutil.Process().children(recursive=True) if "flows.launch.node_agent" in each.cmdline()]
    return sorted(below, key=lambda each: each.create_time())


def test_ranks_get_their_environment(job: Path, env: dict[str, str], cluster: Cluster) -> None:
    job.write_text("settings")
    lines = NodeLines()
    launch("launched_rank", job, threads=3, log=lines, env=env | {"EXTRA": "more"}, cluster=cluster)
    where = f"127.0.0.1 {cluster.port} more"
    assert sorted(line for line in lines if line.startswith("settings")) == [
        f"settings 0 0 3 2 {where}",
        f"settings 1 1 3 2 {where}",
        f"settings 2 0 3 1 {where}",
    ]
    assert f"launched_rank: on east (ranks 0-1), west (rank 2), rendezvous at 127.0.0.1:{cluster.port}" in lines
    assert gone(lines.pids)
    assert agents() == []


def test_the_local_host_needs_no_connecting_command(job: Path, env: dict[str, str], cluster: Cluster) -> None:
    job.write_text("settings")
    lines = NodeLines()
    here = replace(cluster, hosts=(Host("localhost", 2),), connect=("no-such-command", "{host}"))
    launch("launched_rank", job, log=lines, env=env | {"EXTRA": "more"}, cluster=here)
    assert f"settings 1 1 2 2 127.0.0.1 {cluster.port} more" in lines


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("fail", "launched_rank: rank 0 on east failed .*ValueError: the sky is green"),
        ("fail last", "launched_rank: rank 1 on east failed .*ValueError: rank one is unwell"),
        ("die", "launched_rank: rank 2 on west was killed by SIGKILL"),
    ],
)
def test_the_error_is_that_of_the_rank_that_failed_first(
    job: Path, env: dict[str, str], cluster: Cluster, what: str, message: str
) -> None:
    job.write_text(what)
    lines = NodeLines()
    start = time.monotonic()
    with pytest.raises(LaunchError, match=f"(?s){message}"):
        launch("launched_rank", job, log=lines, env=env, grace=5, cluster=cluster)
    assert time.monotonic() - start < 30
    assert gone(lines.pids)
    assert agents() == []


def test_an_exception_in_the_launcher_lets_all_ranks_save(job: Path, env: dict[str, str], cluster: Cluster) -> None:
    job.write_text("save")
    lines = NodeLines(KeyboardInterrupt(), 3)
    with pytest.raises(KeyboardInterrupt):
        launch("launched_rank", job, log=lines, env=env, cluster=cluster)
    assert {line for line in lines if line.endswith("saves")} == {f"rank {rank} saves" for rank in range(3)}
    assert gone(lines.pids)


def test_ranks_that_ignore_sigterm_are_killed(job: Path, env: dict[str, str], cluster: Cluster) -> None:
    job.write_text("stubborn")
    lines = NodeLines(KeyboardInterrupt(), 3)
    with pytest.raises(KeyboardInterrupt):
        launch("launched_rank", job, log=lines, env=env, grace=1, cluster=cluster)
    assert gone(lines.pids, within=2)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (signal.SIGKILL, r"the connection to west was lost \(ended with exit code .*\); rank 2 on west"),
        (signal.SIGSTOP, r"the connection to west was lost \(no message for 2 seconds\); rank 2 on west"),
    ],
)
def test_a_lost_connection_ends_all_ranks(
    job: Path, env: dict[str, str], cluster: Cluster, number: signal.Signals, message: str
) -> None:
    job.write_text("held")
    lines = NodeLines()

    def log(line: str) -> None:
        lines(line)
        if lines.count("ready") == 3 and line.endswith("ready"):
            (agent,) = [each for each in agents() if "2" in {c.environ().get("RANK") for c in each.children()}]
            agent.send_signal(number)

    start = time.monotonic()
    with pytest.raises(LaunchError, match=message):
        launch("launched_rank", job, log=log, env=env, cluster=replace(cluster, silence=2.0))
    assert time.monotonic() - start < 30
    assert gone(lines.pids, within=5)
    assert agents() == []


def test_no_rank_outlives_a_stopped_or_killed_launcher(job: Path, env: dict[str, str], cluster: Cluster) -> None:
    job.write_text("held")
    code = (
        "import sys; from pathlib import Path\n"
        "from flows.launch.launch import launch; from flows.launch.hosts import *\n"
        f"launch('launched_rank', Path(sys.argv[1]), env={env!r}, cluster={replace(cluster, silence=2.0)!r})"
    )
    for number in (signal.SIGKILL, signal.SIGSTOP):
        launcher = subprocess.Popen(
            [sys.executable, "-uc", code, str(job)], env={**os.environ, **env}, stdout=subprocess.PIPE, text=True
        )
        assert launcher.stdout is not None
        lines = NodeLines()
        while lines.count("ready") < 3:
            lines(launcher.stdout.readline().strip())
        started = psutil.Process(launcher.pid).children(recursive=True)
        launcher.send_signal(number)
        assert gone([each.pid for each in started], within=15)
        launcher.kill()
        launcher.wait()
        launcher.stdout.close()


def test_output_of_a_login_shell_is_harmless(job: Path, env: dict[str, str], cluster: Cluster) -> None:
    job.write_text("finish")
    lines = NodeLines()
    greeting = ("sh", "-c", 'echo "Welcome to $1"; echo 7; shift; exec sh -c "$*"', "sh", "{host}")
    launch("launched_rank", job, log=lines, env=env, cluster=replace(cluster, connect=greeting))
    assert "[west] Welcome to west" in lines
    assert len(lines.pids) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"connect": ("no-such-command", "{host}")}, "launch.connect: cannot run no-such-command: No such file"),
        (
            {"connect": ("sh", "-c", "echo no route to {host} >&2; exit 255")},
            "cannot start ranks on east: .* 255: no route to east",
        ),
        ({"python": "/no/python"}, "cannot start ranks on east: .* ended with exit code 127"),
        ({"address": "127.0.0.2", "connect": SHELL}, None),  # the first host listens on all of its addresses
    ],
)
def test_unusable_hosts_are_reported(job: Path, cluster: Cluster, changes: dict, message: str | None) -> None:
    start = time.monotonic()
    if message is None:
        check_rendezvous(replace(cluster, **changes), None, job.parent, print)
    else:
        with pytest.raises(LaunchError, match=f"(?s){message}"):
            check_rendezvous(replace(cluster, **changes), None, job.parent, print)
    assert time.monotonic() - start < 15
    assert agents() == []
    assert list(job.parent.iterdir()) == []


def test_failures_between_two_networks(
    job: Path, env: dict[str, str], two_namespaces: TwoHosts, tmp_path: Path
) -> None:
    hosts, cluster = two_namespaces, two_namespaces.cluster
    start = time.monotonic()
    job.write_text("finish")
    with hosts.cut(), pytest.raises(LaunchError, match=f"{hosts.second}: cannot reach the first host at 10.213.77.1"):
        check_rendezvous(cluster, None, tmp_path / "store", print)
    with pytest.raises(LaunchError, match=r"cannot start ranks on nowhere: .* network namespace"):
        elsewhere = replace(cluster, hosts=(cluster.hosts[0], Host("nowhere", 1)))
        check_rendezvous(elsewhere, None, tmp_path / "store", print)
    taken = f"import socket, time; s = socket.create_server(('', {cluster.port})); print(flush=True); time.sleep(60)"
    command = ["ip", "netns", "exec", hosts.first, sys.executable, "-c", taken]
    other = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert other.stdout is not None
    other.stdout.readline()
    with pytest.raises(LaunchError, match=f"{hosts.first}: .* rendezvous port {cluster.port} .* in use"):
        launch("launched_rank", job, env=env, cluster=cluster)
    assert hosts.pids() == [other.pid]
    other.kill()
    other.wait()
    other.stdout.close()
    lines = NodeLines()
    launch("launched_rank", job, log=lines, env=env, cluster=cluster)
    assert len(lines.pids) == 2
    assert time.monotonic() - start < 30
    assert hosts.pids() == []
