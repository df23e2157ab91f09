"""A command that is asked to stop exits within seconds, whatever its threads do."""

import signal
import subprocess
import sys
import time

import psutil
import pytest

from flows.server import stopping

# A command with a thread that never ends and, unless `quick`, a main thread that takes no notice of exceptions.
COMMAND = """
import os, signal, subprocess, sys, threading, time
from flows.server import stopping

for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda number, frame: sys.exit(1))
what, stopping.STOP_SECONDS, stopping.LOST_SECONDS = sys.argv[1], 0.3, 0.3
threading.Thread(target=time.sleep, args=(60,)).start()
with stopping.stops_promptly() as stop:
    if what == "rank":
        code = "import time; time.sleep(1.5)"
        subprocess.Popen([sys.executable, "-c", code], env={**os.environ, stopping.RANK: "stdin"})
    print("ready", flush=True)
    if what == "lost":
        stop.lost("the server is gone")
    while True:
        try:
            time.sleep(60)
        except BaseException:
            if what == "quick":
                raise
"""


def run(what: str, *numbers: int) -> tuple[int, str, float]:
    """Returns exit code, error output and the seconds from the first signal to the exit."""
    command = [sys.executable, "-c", COMMAND, what]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        start = time.monotonic()
        for number in numbers:
            process.send_signal(number)
            time.sleep(0.05)
        try:
            _, errors = process.communicate(timeout=30)
        finally:
            process.kill()
        return process.returncode, errors, time.monotonic() - start


@pytest.mark.parametrize("number", stopping.SIGNALS)
@pytest.mark.parametrize("what", ["quick", "stubborn"])
def test_a_signal_ends_the_command_with_its_code_and_one_line(what, number):
    code, errors, _ = run(what, number)
    assert code == 128 + number
    assert errors == f"honeybee: stopped by {signal.Signals(number).name}; run it again to continue\n"


def test_ranks_are_waited_for_until_a_second_signal():
    code, _, waited = run("rank", signal.SIGTERM)
    assert code == 128 + signal.SIGTERM and waited > 1
    code, _, at_once = run("rank", signal.SIGINT, signal.SIGINT)
    assert code == 128 + signal.SIGINT and at_once < waited


def test_a_command_that_has_lost_its_server_says_so():
    assert run("lost")[:2] == (1, "honeybee: the server is gone\n")


def test_a_worker_ends_with_its_runs_when_the_server_has_ended():
    sleeper = f"[{sys.executable!r}, '-c', 'import time; time.sleep(60)']"
    code = f"""
import subprocess
from flows.server import work
work.POLL_SECONDS = work.LOST_SECONDS = 0.1
server, run = (subprocess.Popen({sleeper}) for _ in range(2))
print(run.pid, flush=True)
server.kill()
work.end_with_server(server.pid)
"""
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, timeout=30)
    pid, said = done.stdout.splitlines()
    assert done.returncode == 1 and done.stderr == ""
    assert said == "the Prefect server has ended: so do its worker and its runs"
    assert not psutil.pid_exists(int(pid)) or psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE
