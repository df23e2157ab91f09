"""Separate learning rates per part: results match plain torch with such parameter groups, in every ZeRO stage."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from support.training_data import rows, write_shards
from support.training_jobs import elsewhere, make_job
from support.training_plain import assert_bit_equal, plain_torch, weights
from support.training_ranks import Ranks, curve, losses, train
from transformers import AutoTokenizer

from model import HoneybeeForConditionalGeneration
from model.training.engine.optimizer import PARTS, freeze, parameter_groups
from model.training.job import load_job
from model.training.settings import JobError

RATES = {"projector": 1e-2, "llm": 1e-3}


@pytest.fixture(scope="module")
def shards(tiny_backbones: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbones / "llm")
    return write_shards(tmp_path_factory.mktemp("shards"), rows(tokenizer, 64), tiny_backbones / "llm", 3)


@pytest.fixture(scope="module")
def usual(tiny_backbones: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A job with one rank, already trained."""
    job = make_job(tiny_backbones, shards, tmp_path_factory.mktemp("usual"), learning_rates=RATES, save_every=3)
    train(job)
    return job


@pytest.fixture(scope="module")
def plain(usual: dict[str, Any]) -> tuple[list[float], dict[str, torch.Tensor]]:
    return plain_torch(usual, groups)


def groups(model: HoneybeeForConditionalGeneration) -> list[dict[str, Any]]:
    """Returns the matrices and vectors of each part as groups, each with the peak of its part."""
    made = []
    for part, peak in RATES.items():
        parameters = list(getattr(model, part).parameters())
        made.append({"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.01, "peak": peak})
        made.append({"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0, "peak": peak})
    return made


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "zero_stage"), [(1, 0), (2, 0), (1, 2), (2, 2), (2, 3)])
def test_each_part_trains_at_its_learning_rate(
    usual: dict[str, Any],
    plain: tuple[list[float], dict[str, torch.Tensor]],
    tmp_path: Path,
    ranks: int,
    zero_stage: int,
) -> None:
    job = usual
    if (ranks, zero_stage) != (1, 0):
        job = elsewhere(usual, tmp_path, zero_stage=zero_stage, micro_batch=4)
        train(job, ranks)
    history, state = plain
    assert [loss for _, loss, _ in losses(job)] == pytest.approx(history, abs=1e-4)
    for name, tensor in weights(job).items():
        torch.testing.assert_close(tensor, state[name], atol=2e-4, rtol=1e-3)


@pytest.mark.slow
def test_the_rates_make_a_difference(usual: dict[str, Any], plain: tuple[list[float], dict[str, torch.Tensor]]) -> None:
    _, at_one_rate = plain_torch(usual)
    for part in RATES:
        moved = [(at_one_rate[name] - tensor).abs().max() for name, tensor in plain[1].items() if name.startswith(part)]
        assert max(moved) > 2e-3


@pytest.mark.slow
def test_metrics_contain_the_learning_rate_of_each_part(usual: dict[str, Any], tmp_path: Path) -> None:
    last = curve(usual)[-1]
    assert last["learning_rate"] == pytest.approx(3e-4)
    assert last["learning_rates"] == pytest.approx({"projector": 1e-3, "llm": 1e-4})  # a tenth of each peak
    same = elsewhere(usual, tmp_path, learning_rates={"llm": 3e-3}, steps=3)
    train(same)
    assert all("learning_rates" not in line for line in curve(same))


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "zero_stage"), [(1, 2), (2, 3)])
def test_killed_run_resumes_bit_for_bit(usual: dict[str, Any], tmp_path: Path, ranks: int, zero_stage: int) -> None:
    layout = {"zero_stage": zero_stage, "micro_batch": 8 // ranks, "precision": "bf16"}
    uninterrupted = elsewhere(usual, tmp_path / "uninterrupted", **layout)
    train(uninterrupted, ranks)
    killed = elsewhere(usual, tmp_path / "killed", **layout)
    Ranks(killed, ranks).signal_when(Path(killed["work"]) / "checkpoints" / "step-00000003", signal.SIGKILL)
    train(killed, ranks)
    assert_bit_equal(killed, uninterrupted)


@pytest.mark.slow
def test_checkpoint_resumes_in_a_different_layout(usual: dict[str, Any], tmp_path: Path) -> None:
    moved = elsewhere(usual, tmp_path, zero_stage=3, micro_batch=4)
    for step, (ranks, zero_stage) in zip((3, 6), ((2, 3), (1, 0)), strict=True):
        moved["train"] |= {"zero_stage": zero_stage}
        Ranks(moved, ranks).signal_when(Path(moved["work"]) / "checkpoints" / f"step-{step:08d}", signal.SIGKILL)
    moved["train"] |= {"zero_stage": 2}
    train(moved, 2)
    assert [loss for _, loss, _ in losses(moved)] == pytest.approx([loss for _, loss, _ in losses(usual)], abs=1e-3)


def test_parts_with_the_same_rate_share_groups(tiny_model: HoneybeeForConditionalGeneration) -> None:
    freeze(tiny_model, PARTS)
    groups = parameter_groups(tiny_model, 0.1, {"vision": 0.5, "llm": 0.5})
    assert [(group["rate_scale"], group["weight_decay"]) for group in groups] == [
        (0.5, 0.1),
        (0.5, 0.0),
        (1.0, 0.1),
        (1.0, 0.0),
    ]
    slow = {id(p) for part in (tiny_model.vision, tiny_model.llm) for p in part.parameters()}
    assert {id(p) for group in groups[:2] for p in group["params"]} == slow
    assert len(parameter_groups(tiny_model, 0.1)) == 2


def test_rate_for_a_frozen_part_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    path.write_text(json.dumps(make_job(tmp_path, tmp_path, tmp_path, learning_rates={"vision": 1e-3})))
    with pytest.raises(JobError, match="learning_rates names vision, not in `trains`"):
        load_job(path)
    path.write_text(json.dumps(make_job(tmp_path, tmp_path, tmp_path, learning_rates={"llm": 0})))
    with pytest.raises(JobError, match=r"train\.learning_rates\.llm"):
        load_job(path)


def test_identity_contains_learning_rates_only_if_used(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    path.write_text(json.dumps(make_job(tmp_path, tmp_path, tmp_path)))
    assert "learning_rates" not in load_job(path).identity()["train"]
    path.write_text(json.dumps(make_job(tmp_path, tmp_path, tmp_path, learning_rates=RATES)))
    assert load_job(path).identity()["train"]["learning_rates"] == RATES
