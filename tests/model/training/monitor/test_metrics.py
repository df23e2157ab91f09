"""Tests what is reported during training: FLOPs, MFU, and Weights & Biases."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from support.training_data import rows, write_shards
from support.training_jobs import elsewhere, make_job
from support.training_ranks import curve, fails, losses, train

from model import HoneybeeProcessor
from model.training.data.shard_reader import Shards
from model.training.job import Job
from model.training.monitor.flops import Flops
from model.training.prepare import load

pytestmark = pytest.mark.slow
IMAGE = 3  # the id of <image> in the tiny tokenizer
STEPS = 40


@pytest.fixture(scope="module")
def shards(tiny_backbones: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    llm = tiny_backbones / "llm"
    tokenizer = HoneybeeProcessor.from_backbones(str(tiny_backbones / "vision"), str(llm), 16).tokenizer
    return write_shards(tmp_path_factory.mktemp("shards"), rows(tokenizer, STEPS * 8), llm, IMAGE)


@pytest.fixture
def job(tiny_backbones: Path, shards: Path, tmp_path: Path) -> dict[str, Any]:
    return make_job(tiny_backbones, shards, tmp_path)


@pytest.mark.parametrize("ranks", [1, 2])
def test_flops_and_mfu(job: dict[str, Any], tmp_path: Path, ranks: int) -> None:
    job["train"] |= {"steps": 3, "micro_batch": 4, "log_every": 3, "warmup_steps": 0}
    train(job | {"peak_tflops": 0.5}, ranks)
    (line,) = curve(job)
    assert line["mfu"] == pytest.approx(line["flops_per_second"] / (0.5e12 * ranks))
    checked = Job.model_validate(job)
    model, _ = load(checked.init, 0, torch.float32)
    flops = Flops.count(model.config, checked.train.trains)
    samples = Shards(job["shards"]).read(range(24))  # 3 steps of 8
    lengths = [len(sample.input_ids) + 15 * len(sample.images) for sample in samples]
    supervised = sum(int(sample.loss_mask.sum()) for sample in samples)
    needed = flops.of(lengths, supervised, sum(len(sample.images) for sample in samples))
    assert line["flops_per_second"] == pytest.approx(needed * line["samples_per_second"] / 24)

    unknown = elsewhere(job, tmp_path / "unknown")
    train(unknown, ranks)
    assert "flops_per_second" in curve(unknown)[0] and "mfu" not in curve(unknown)[0]  # a CPU's peak is unknown


def test_missing_wandb_is_reported_at_the_start(job: dict[str, Any]) -> None:
    if importlib.util.find_spec("wandb"):
        pytest.skip("wandb is installed")
    job["train"]["wandb"] = {"project": "bees"}
    assert "JobError: the package wandb is not installed: `pip install" in fails(job)
    assert not (Path(job["work"]) / "checkpoints").exists()


def test_wandb_offline(job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs only if the package is installed; needs no account and no network."""
    pytest.importorskip("wandb", reason="the optional package wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    job["train"] |= {"wandb": {"project": "bees"}, "steps": 4, "save_every": 2, "warmup_steps": 0}
    train(job)
    work = Path(job["work"])
    name = (work / "wandb-id").read_text()
    assert list(work.glob(f"wandb/offline-run-*-{name}/run-{name}.wandb"))
    again = elsewhere(job, tmp_path / "again")
    train(again)
    assert losses(again) == losses(job)
