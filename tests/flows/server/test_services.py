"""Server and worker: other processes are never touched, and failures to start are reported."""

import http.server
import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from flows.server import services
from flows.server.process import end, is_alive


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".honeybee").mkdir()
    (tmp_path / "prefect.yaml").write_text("deployments: []\n")
    return tmp_path


@pytest.fixture
def sleeper():
    """A process with a child process."""
    child = "import time; time.sleep(60)"
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}]).wait()"
    process = subprocess.Popen([sys.executable, "-c", code])
    yield psutil.Process(process.pid)
    process.kill()
    process.wait()


def remember(name: str, pid: int, started: float) -> Path:
    path = Path(".honeybee") / f"{name}.json"
    path.write_text(json.dumps({"pid": pid, "started": started, "port": 4200}))
    return path


def test_stop_ends_a_process_with_its_children(sleeper):
    while not sleeper.children():
        pass
    child = sleeper.children()[0]
    record = remember("worker", sleeper.pid, sleeper.create_time())
    services.stop(lambda _: None)
    assert not is_alive(child)
    assert not is_alive(sleeper)
    assert not record.exists()


def test_a_zombie_is_not_waited_for(sleeper):
    while not sleeper.children():
        pass
    child = sleeper.children()[0]
    sleeper.suspend()  # so that it does not collect its child
    start = time.monotonic()
    end([child], 20)
    assert child.status() == psutil.STATUS_ZOMBIE
    assert time.monotonic() - start < 10


def test_stop_ignores_a_process_that_reuses_the_pid(sleeper):
    remember("worker", sleeper.pid, sleeper.create_time() - 100)
    assert services.running_record("worker") is None
    services.stop(lambda _: None)
    assert is_alive(sleeper)


def test_stop_without_started_processes_does_nothing():
    services.stop(lambda line: pytest.fail(line))


def test_a_port_used_by_another_program_is_reported(directory):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(services.ServiceError, match="is used by another program"):
            services.start(server.server_port, directory / "prefect.yaml", lambda _: None)
    finally:
        server.shutdown()
        server.server_close()
    assert services.running_record("server") is None


def test_a_server_that_this_directory_has_not_started_is_not_given_the_secret(directory):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        other.setblocking(False)
        with pytest.raises(services.ServiceError, match=f"does not run at http://127.0.0.1:{port}: start it with"):
            services.check_server(port)
        with pytest.raises(BlockingIOError):
            other.accept()


def test_a_server_at_another_port_is_not_started_twice(directory, sleeper):
    remember("server", sleeper.pid, sleeper.create_time())
    with pytest.raises(services.ServiceError, match=r"runs at http://127\.0\.0\.1:4200: use --port 4200, or stop it"):
        services.start(4300, directory / "prefect.yaml", lambda _: None)


def test_start_outside_a_checkout_is_reported(directory):
    with pytest.raises(services.ServiceError, match=r"nowhere\.yaml does not exist: run this command in a checkout"):
        services.start(4200, directory / "nowhere.yaml", lambda _: None)
