"""Waiting for a lock, and stores that cannot be written."""

import multiprocessing
import os
import socket
import subprocess
import threading
import time

import pytest

from pipelines.core import locks
from pipelines.core.errors import StoreError
from pipelines.core.locks import lock
from pipelines.core.store import FileDigests, Store


def _hold(path, held, release):
    with lock(path):
        held.set()
        release.wait(30)


def test_who_waits_says_for_whom_after_a_while_and_again(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "FIRST", 0.05)
    monkeypatch.setattr(locks, "EVERY", 0.3)
    context = multiprocessing.get_context("fork")
    held, release = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path / ".lock", held, release))
    process.start()
    assert held.wait(10)
    lines: list[str] = []

    def note(line: str) -> None:
        lines.append(line)
        if len(lines) == 2:
            release.set()

    with lock(tmp_path / ".lock", "examples/0123", note):
        assert (tmp_path / ".lock").read_text() == f"process {os.getpid()} on {socket.gethostname()}"
    process.join()
    who = f"waiting for process {process.pid} on {socket.gethostname()}, which works on examples/0123"
    assert len(lines) >= 2 and all(line.startswith(who) for line in lines)


def test_a_lock_that_is_free_soon_is_not_worth_a_line(tmp_path):
    held = threading.Event()

    def hold() -> None:
        with lock(tmp_path / ".lock"):
            held.set()
            time.sleep(0.1)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    with lock(tmp_path / ".lock", log=pytest.fail):
        thread.join()


def test_a_store_that_cannot_be_written_serves_what_is_built_and_says_what_is_not(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(disk)], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs: {mounted.stderr.strip()}")
    try:
        file = tmp_path / "file"
        file.write_text("content")
        built = Store(disk / "store").produce("stage", {"n": 1}, lambda out: {})
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        store = Store(disk / "store")
        assert store.produce("stage", {"n": 1}, lambda out: pytest.fail("built again")) == built
        assert len(FileDigests(store).digest(file)) == 64
        with pytest.raises(StoreError, match=r"must be built, but the store cannot be written to .*: make it writable"):
            store.produce("stage", {"n": 2}, lambda out: {})
        with pytest.raises(StoreError, match=r"must be built, but the store cannot be written to .*: make it writable"):
            store.produce("other", {"n": 2}, lambda out: {})
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
