"""A stage on two hosts gives bit-identical results to two ranks on one host, even if one host's rank is killed."""

import json
import os
import signal
from pathlib import Path

import psutil
import pytest
from support.namespaces import INTERFACE, TwoHosts
from support.training_data import rows, write_shards
from support.training_jobs import elsewhere, make_job
from support.training_ranks import losses, train
from transformers import AutoTokenizer

from flows.launch.launch import launch
from flows.launch.nodes import LaunchError

pytestmark = pytest.mark.slow


def test_stage_resumes_to_the_same_weights_after_a_rank_on_another_host_is_killed(
    tiny_backbones: Path, two_namespaces: TwoHosts, tmp_path: Path
) -> None:
    hosts = two_namespaces
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbones / "llm")
    shards = write_shards(tmp_path / "shards", rows(tokenizer, 12 * 4), tiny_backbones / "llm", 3)
    job = make_job(tiny_backbones, shards, tmp_path / "two", steps=12, global_batch=4, micro_batch=2, save_every=2)
    one_host = elsewhere(job, tmp_path / "one")
    train(one_host, ranks=2)

    path = tmp_path / "job.json"
    path.write_text(json.dumps(job))
    lines: list[str] = []

    def kill_the_second(line: str) -> None:
        lines.append(line)
        if line.startswith("step 4/"):
            (second,) = [pid for pid in hosts.pids() if psutil.Process(pid).environ().get("RANK") == "1"]
            os.kill(second, signal.SIGKILL)

    with pytest.raises(LaunchError, match=rf"rank 1 on {hosts.second} was killed by SIGKILL"):
        launch("model.training", path, threads=1, log=kill_the_second, cluster=hosts.cluster, grace=10)
    assert hosts.pids() == []

    launch("model.training", path, threads=1, log=lines.append, cluster=hosts.cluster)
    assert hosts.pids() == []
    resumed = [int(line.rpartition(" ")[2]) for line in lines if line.startswith("resumed after step")]
    assert len(resumed) == 1 and 2 <= resumed[0] < 12
    assert losses(job) == losses(one_host)
    for name in ("two", "one"):
        assert (tmp_path / name / "output" / "manifest.json").is_file()
    weights = [(tmp_path / name / "output" / "model.safetensors").read_bytes() for name in ("two", "one")]
    assert weights[0] == weights[1]


def test_interface_named_in_the_recipe_is_used(two_namespaces: TwoHosts, tmp_path: Path) -> None:
    """Otherwise the interface that routes to the first host is used."""
    path = tmp_path / "job.json"
    path.write_text("{}")
    code = "import os, sys; print('interface', os.environ['GLOO_SOCKET_IFNAME'])"
    (tmp_path / "report_interface.py").write_text(code)
    for env, interface in (({}, INTERFACE), ({"GLOO_SOCKET_IFNAME": "other0"}, "other0")):
        lines: list[str] = []
        more = {"PYTHONPATH": str(tmp_path), **env}
        launch("report_interface", path, log=lines.append, env=more, cluster=two_namespaces.cluster)
        assert {f"interface {interface}", f"[rank 1] interface {interface}"} < set(lines)
