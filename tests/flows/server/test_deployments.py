"""Server, worker, deployments and runs as used by `make train`."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml
from support.tiny import write_tiny

from flows.server.process import is_alive

pytestmark = pytest.mark.slow
FLOW = Path(__file__).resolve().parents[3] / "flows/rebuild_dataset.py:rebuild_dataset"


@pytest.fixture(scope="module")
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def project(tmp_path_factory, corpus, port):
    """A directory in which `up` has started Prefect, with deployments of a valid and an invalid recipe."""
    root = tmp_path_factory.mktemp("project")
    paths = {"store": str(root / "store"), "runs": str(root / "runs"), "data": str(corpus / "data")}
    backbones = {"vision": str(corpus / "backbones/vision"), "llm": str(corpus / "backbones/llm")}
    small = {"sample": None, "paths": paths, "backbones": backbones}
    good = write_tiny(root, small)
    bad = write_tiny(root, {**small, "name": "bad", "finetune/data/templates": "fein"})
    deployments = [
        {"name": name, "entrypoint": str(FLOW), "parameters": {"recipe": str(path)}, "work_pool": {"name": "local"}}
        for name, path in (("good", good), ("bad", bad))
    ]
    pull = [{"prefect.deployments.steps.set_working_directory": {"directory": str(root)}}]
    (root / "prefect.yaml").write_text(yaml.safe_dump({"name": "test", "pull": pull, "deployments": deployments}))
    try:
        done = honeybee(root, "up", "--port", port)
        assert done.returncode == 0, done.stdout + done.stderr
        yield root
    finally:
        honeybee(root, "down")


def honeybee(root: Path, *arguments: object) -> subprocess.CompletedProcess:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
    env["PREFECT_WORKER_QUERY_SECONDS"] = "1"  # instead of 10 between two looks for new runs
    command = [Path(sys.executable).with_name("honeybee"), *map(str, arguments)]
    return subprocess.run(command, cwd=root, env=env, text=True, capture_output=True)


def records(root: Path) -> dict[str, int]:
    return {path.stem: json.loads(path.read_text())["pid"] for path in (root / ".honeybee").glob("*.json")}


def test_a_run_shows_its_log_and_final_state(project, port):
    done = honeybee(project, "submit", "rebuild-dataset/good", "--port", port)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "  examples of vqav2 | vqav2: " in done.stdout
    assert "(Completed)" in done.stdout
    assert done.stdout.rstrip().endswith(f"UI: http://127.0.0.1:{port}")
    assert (project / "runs/tiny/latest-build/report.md").is_file()


def test_a_failed_run_fails_the_command(project, port):
    done = honeybee(project, "submit", "rebuild-dataset/bad", "--port", port)
    assert done.returncode == 1
    assert "template set 'fein'" in done.stdout
    assert "(Failed)" in done.stdout


def test_the_secret_is_in_no_log_and_no_command_line(project, port):
    """After runs, because their processes and logs are meant too."""
    secret = (project / ".honeybee/auth").read_text().strip().partition(":")[2]
    logs = [path.read_text(errors="replace") for path in (project / ".honeybee").rglob("*.log")]
    assert len(secret) > 40 and len(logs) == 2
    assert not any(secret in text for text in logs)
    started = [psutil.Process(pid) for pid in records(project).values()]
    family = started + [child for process in started for child in process.children(recursive=True)]
    assert not any(secret in argument for process in family for argument in process.cmdline())


def test_prefects_own_command_reaches_the_server_through_its_profile(project, port):
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
    env["PREFECT_HOME"] = ".honeybee/prefect"  # as the documentation says
    code = (
        "from prefect.client.orchestration import get_client\n"
        "with get_client(sync_client=True) as client: print(client.api_url, len(client.read_deployments()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=project, env=env, text=True, capture_output=True)
    assert done.stdout.split() == [f"http://127.0.0.1:{port}/api/", "2"], done.stderr


def test_an_unknown_deployment_is_reported(project, port):
    done = honeybee(project, "submit", "rebuild-dataset/none", "--port", port)
    assert done.returncode == 1
    assert done.stderr.startswith("honeybee: there is no deployment rebuild-dataset/none")


def test_up_reuses_a_running_server_and_worker(project, port):
    before = records(project)
    done = honeybee(project, "up", "--port", port)
    assert "A Prefect server is already running" in done.stdout
    assert "A worker is already running" in done.stdout
    secret = (project / ".honeybee/auth").read_text().strip()
    assert ".honeybee/auth" in done.stdout and secret.partition(":")[2] not in done.stdout
    assert records(project) == before


def test_down_stops_server_and_worker(project, port):
    started = [psutil.Process(pid) for pid in records(project).values()]
    assert len(started) == 2
    family = started + [child for process in started for child in process.children(recursive=True)]
    assert honeybee(project, "down").returncode == 0
    assert not list(filter(is_alive, family))
    assert records(project) == {}
    assert honeybee(project, "down").stdout == ""
