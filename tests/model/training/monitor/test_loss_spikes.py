"""Steps with a loss spike or a non-finite loss or gradient are reported, and skipped if the job says so."""

import json
import math
import signal
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from support.training_data import rows, write_shards
from support.training_jobs import elsewhere, make_job
from support.training_ranks import Ranks, curve, fails, in_a_rank, losses, train
from torch import nn

from model import HoneybeeProcessor
from model.training.job import Job
from model.training.settings import Train

pytestmark = pytest.mark.slow
IMAGE = 3  # the id of <image> in the tiny tokenizer
STEPS, ODD = 32, 28  # the samples of step ODD have tokens unlike all earlier ones


@pytest.fixture(scope="module")
def shards(tiny_backbones: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    llm = tiny_backbones / "llm"
    tokenizer = HoneybeeProcessor.from_backbones(str(tiny_backbones / "vision"), str(llm), 16).tokenizer
    samples = rows(tokenizer, STEPS * 8)
    for sample in samples[(ODD - 1) * 8 : ODD * 8]:
        count = sample["num_supervised"]
        odd = [200 + (7 * i + sample["index"]) % 60 for i in range(count)]
        sample["input_ids"] = sample["input_ids"][:-count] + odd
    return write_shards(tmp_path_factory.mktemp("shards"), samples, llm, IMAGE)


def job_of(tiny_backbones: Path, shards: Path, directory: Path, **settings: Any) -> dict[str, Any]:
    return make_job(tiny_backbones, shards, directory, steps=STEPS, save_every=6, **settings)


@pytest.fixture
def job(tiny_backbones: Path, shards: Path, tmp_path: Path) -> dict[str, Any]:
    return job_of(tiny_backbones, shards, tmp_path)


@pytest.fixture(scope="module")
def skipping(tiny_backbones: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A job that skips spikes, already trained."""
    job = job_of(tiny_backbones, shards, tmp_path_factory.mktemp("skipping"), on_spike="skip")
    train(job)
    return job


def spikes(job: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(job["work"]) / "spikes.jsonl").read_text().splitlines()]


def without_time(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key != "time"} for record in records]


def test_spike_is_reported_with_the_samples_of_all_ranks(job: dict[str, Any]) -> None:
    job["train"]["micro_batch"] = 4
    running = Ranks(job, 2)
    assert running.wait() == [0, 0]
    (spike,) = spikes(job)
    assert (spike["step"], spike["reason"], spike["skipped"]) == (ODD, "spike", False)
    assert spike["loss"] == pytest.approx(curve(job)[ODD - 1]["loss"]) and spike["loss"] > 1.5 * spike["usual_loss"]
    assert spike["grad_norm"] == pytest.approx(curve(job)[ODD - 1]["grad_norm"])
    found = {sample["sample"].split(" (")[0] for sample in spike["samples"]}
    assert found == {f"sample {index}" for index in range((ODD - 1) * 8, ODD * 8)}
    each = [sample["loss"] for sample in spike["samples"]]
    assert each == sorted(each, reverse=True)
    total = sum(sample["loss"] * sample["supervised_tokens"] for sample in spike["samples"])
    assert total / sum(sample["supervised_tokens"] for sample in spike["samples"]) == pytest.approx(spike["loss"])
    assert f"step {ODD}: spike: loss {spike['loss']:.4f} (usually {spike['usual_loss']:.4f})" in running.output()
    assert "the step was taken. Highest losses: sample" in running.output()
    assert {line["skipped_steps"] for line in curve(job)} == {0}


def test_spike_is_skipped(job: dict[str, Any], skipping: dict[str, Any]) -> None:
    (spike,) = spikes(skipping)
    assert (spike["step"], spike["skipped"]) == (ODD, True)
    lines = curve(skipping)
    assert [line["skipped_steps"] for line in lines] == [int(line["step"] >= ODD) for line in lines]
    assert len(lines) == STEPS  # a skipped step counts as a step
    train(job)  # does not skip it
    assert losses(job)[:ODD] == losses(skipping)[:ODD]
    assert losses(job)[ODD] != losses(skipping)[ODD]
    assert [line["learning_rate"] for line in curve(job)] == [line["learning_rate"] for line in lines]
    manifest = json.loads((Path(skipping["output"]) / "manifest.json").read_text())
    assert manifest["stages"][-1]["skipped_steps"] == 1


# Killed before the spike, so that the running median must be restored, and after it, when AdamW took one step less.
@pytest.mark.parametrize(("step", "zero_stage"), [(24, 0), (30, 0), (30, 2)])
def test_killed_run_makes_the_same_decisions(
    skipping: dict[str, Any], tmp_path: Path, step: int, zero_stage: int
) -> None:
    reference = skipping
    if zero_stage:
        reference = elsewhere(skipping, tmp_path / "reference", zero_stage=zero_stage)
        train(reference)
    killed = elsewhere(skipping, tmp_path / "killed", zero_stage=zero_stage)
    checkpoint = Path(killed["work"]) / "checkpoints" / f"step-{step:08d}"
    assert Ranks(killed).signal_when(checkpoint, signal.SIGKILL) == [-signal.SIGKILL]
    train(killed)
    assert losses(killed) == losses(reference)
    assert without_time(spikes(killed)) == without_time(spikes(reference))
    assert (Path(killed["output"]) / "model.safetensors").read_bytes() == (
        Path(reference["output"]) / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(
    ("rate", "reason", "message"),
    [
        (1e12, "loss not finite", "step 12: the loss is not finite in sample"),
        (1e30, "gradient not finite", "step 12: the gradient norm is not finite although all losses are"),
    ],
)
def test_at_most_ten_consecutive_non_finite_steps_are_skipped(
    job: dict[str, Any], rate: float, reason: str, message: str
) -> None:
    job["train"] |= {"learning_rate": rate, "warmup_steps": 0, "on_nonfinite": "skip", "micro_batch": 4}
    output = fails(job, 2)
    assert f"NonFiniteError: {message}" in output and "on_nonfinite: skip allows no more in a row" in output
    found = spikes(job)
    assert [record["step"] for record in found] == list(range(2, 13))
    assert [record["skipped"] for record in found] == [True] * 10 + [False]
    assert {record["reason"] for record in found} == {reason}
    assert [line["skipped_steps"] for line in curve(job)] == [0, *range(1, 11)]
    assert isinstance(found[0]["loss"], float) == (reason == "gradient not finite")


def test_run_that_stops_also_reports(job: dict[str, Any]) -> None:
    job["train"] |= {"learning_rate": 1e12, "warmup_steps": 0}
    fails(job)
    (record,) = spikes(job)
    assert (record["step"], record["reason"], record["skipped"]) == (2, "loss not finite", False)


def check_skipped_step(zero_stage: int, precision: str, offload: bool, nan: bool) -> None:
    """A step that is skipped, on request or because its gradient is not finite, does not affect later steps."""
    from model import distributed
    from model.training.engine.deepspeed_engine import Engine

    settings: dict[str, Any] = {"zero_stage": zero_stage, "precision": precision, "offload": offload}
    settings |= {"global_batch": 4, "micro_batch": 2, "steps": 900}
    ranks = distributed.init_ranks("cpu")

    def trained(steps: list[str]) -> list[torch.Tensor]:
        torch.manual_seed(0)
        dtype = torch.float32 if precision == "fp32" else torch.bfloat16
        parts = {"vision": nn.Linear(4, 8), "projector": nn.ReLU(), "llm": nn.Linear(8, 4)}
        model = nn.Sequential(OrderedDict(parts)).to(dtype)
        engine = Engine(model, Train(**settings), ranks)
        data = torch.randn(len("abc"), 2, 2, 4, dtype=dtype)
        for step in steps:
            for micro in data["abc".index(step[0])]:
                loss = engine.forward(input=micro).float().pow(2).sum()
                engine.backward(loss * (math.nan if nan and step.endswith("!") else 1))
            norm = engine.step(0.01, skip=step.endswith("!") and not nan)
            assert math.isfinite(norm) != (nan and step.endswith("!"))
        return [tensor for _, p in engine.trained for tensor in engine.full_state(p).values()]

    plain, skipped = trained(["a", "c", "a"]), trained(["a", "b!", "c", "a"])
    assert all(torch.equal(one, other) for one, other in zip(plain, skipped, strict=True))


@pytest.mark.parametrize("nan", [False, True])
@pytest.mark.parametrize(
    ("zero_stage", "precision", "offload"),
    [(0, "fp32", False), (0, "bf16", False), (2, "fp32", False), (2, "bf16", False), (2, "bf16", True)]
    + [(3, "fp32", False), (3, "bf16", False)],
)
def test_skipped_step_changes_nothing(zero_stage: int, precision: str, offload: bool, nan: bool) -> None:
    in_a_rank(check_skipped_step, zero_stage, precision, offload, nan)


def test_identity_contains_spike_settings_only_if_they_skip_steps(job: dict[str, Any]) -> None:
    def identity(**settings: Any) -> dict[str, Any]:
        return Job.model_validate({**job, "train": {**job["train"], **settings}}).identity()

    usual = identity()
    assert not {"spike_threshold", "on_spike", "on_nonfinite"} & set(usual["train"])
    assert identity(spike_threshold=3) == usual
    assert identity(on_nonfinite="skip") != usual
    assert identity(on_spike="skip") != usual
    assert identity(on_spike="skip", spike_threshold=3) != identity(on_spike="skip")
