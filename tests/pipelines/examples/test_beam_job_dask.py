"""Beam job 1 on Dask, with a scheduler and two workers in separate processes on the loopback interface."""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow as pa
import pytest
from support.example_settings import example_settings

from pipelines.core.arrow_files import read_table, write_batches
from pipelines.core.integrity import write_manifest
from pipelines.dedup.settings import Dedup
from pipelines.examples.beam_job import ExamplesJob, run_examples_job
from pipelines.schema import ANNOTATIONS
from pipelines.templates import sets
from pipelines.templates.sets import load_templates

ROWS, PARTITIONS = 20_000, 40
DASK_RUNNER = "apache_beam.runners.dask.dask_runner.DaskRunner"


@pytest.fixture
def job(tmp_path, tokenizer_dir):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "here").mkdir()
    rows = [
        {"row": i, "image": f"{i // 5}.jpg", "question": f"What is number {i % 977}?", "answer": f"thing {i % 31}"}
        for i in range(ROWS)
    ]
    table = pa.Table.from_pylist(rows, ANNOTATIONS["open_question"])
    write_batches(tmp_path / "annotations" / "annotations-00000.arrow", table.schema, table.to_batches(1000))
    settings = example_settings(tokenizer_dir, max_turns=3, dedup=Dedup(rule="answer"))
    write_manifest(tmp_path / "annotations", {})
    return ExamplesJob(tmp_path / "annotations", None, None, settings, PARTITIONS, tmp_path / "here")


@pytest.fixture
def cluster(tmp_path):
    """Yields the scheduler's address and the worker processes."""
    scheduler_file = tmp_path / "scheduler.json"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0"]
    worker = [
        sys.executable,
        "-m",
        "distributed.cli.dask_worker",
        "--scheduler-file",
        str(scheduler_file),
        "--no-nanny",
    ]
    worker += ["--host", "127.0.0.1", "--nthreads", "1", "--no-dashboard", "--local-directory", str(tmp_path / "dask")]
    with contextlib.ExitStack() as processes:

        def start(arguments):
            process = processes.enter_context(subprocess.Popen(arguments, cwd=Path.cwd(), **quiet))
            processes.callback(process.kill)
            return process

        start([*command, "--no-dashboard", "--scheduler-file", str(scheduler_file)])
        workers = [start(worker) for _ in range(2)]
        address = json.loads(_wait_for(lambda: scheduler_file.is_file() and scheduler_file.read_text()))["address"]
        from distributed import Client

        with Client(address) as client:
            client.wait_for_workers(2, timeout=60)
        yield address, workers


def _wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.02)
    raise TimeoutError(f"the condition was not met within {seconds} s")


def outputs(job):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(job.out.iterdir())}


def on_dask(job, address):
    from distributed import default_client

    run_examples_job(job, [f"--runner={DASK_RUNNER}", f"--dask_client_address={address}"])
    default_client().close()  # the runner does not close it


def test_dask_writes_the_same_bytes_as_one_process_even_if_a_worker_is_killed(job, cluster, tmp_path):
    address, workers = cluster
    run_examples_job(job, ["--runner=FnApiRunner"])
    expected = outputs(job)
    for name in ("undisturbed", "killed"):
        (tmp_path / name).mkdir()
    undisturbed = dataclasses.replace(job, out=tmp_path / "undisturbed")
    on_dask(undisturbed, address)
    assert outputs(undisturbed) == expected

    killed = dataclasses.replace(job, out=tmp_path / "killed")
    seen = []

    def kill_midway():
        markers = _wait_for(lambda: len(list(killed.out.glob("counts-*"))) >= 3 and list(killed.out.iterdir()))
        os.kill(workers[0].pid, signal.SIGKILL)
        seen.append(len([path for path in markers if path.name.startswith("counts-")]))

    killer = threading.Thread(target=kill_midway)
    killer.start()
    on_dask(killed, address)
    killer.join()
    assert workers[0].wait() == -signal.SIGKILL and workers[1].poll() is None
    assert seen[0] < PARTITIONS, "the worker was killed after all partitions were done"
    assert outputs(killed) == expected


def test_an_edited_template_takes_effect_in_workers_that_stay_up(job, cluster, tmp_path, monkeypatch):
    shutil.copytree(sets.ROOT, tmp_path / "templates")
    monkeypatch.setattr(sets, "ROOT", tmp_path / "templates")
    file = tmp_path / "templates/fine/vqav2.yaml"
    original = file.read_text()
    address, _ = cluster
    seen = []
    for name, opening in (("before", "Look."), ("after", "Look again.")):
        file.write_text(original.replace("{question}", f"{opening} {{question}}"))
        (tmp_path / name).mkdir()
        templates = load_templates("fine", "vqav2", "open_question")
        settings = dataclasses.replace(job.settings, templates=templates)
        edited = dataclasses.replace(job, settings=settings, out=tmp_path / name, partitions=4)
        on_dask(edited, address)
        examples = pa.concat_tables([read_table(edited.part("examples", p, "arrow")) for p in range(4)])
        users = [turn["user"] for turns in examples["turns"].to_pylist() for turn in turns]
        assert all(user.startswith(f"{opening} What is number") for user in users) and len(users) > ROWS // 2
        seen.append(settings.key(None))
    assert seen[0] != seen[1]
