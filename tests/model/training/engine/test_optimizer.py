"""Tests which parameters are trained, with which weight decay and learning rate."""

import math
from pathlib import Path

import pytest
import torch

from model import HoneybeeForConditionalGeneration
from model.training.engine.optimizer import freeze, learning_rate, parameter_groups
from model.training.settings import JobError

SCHEDULE = {"steps": 100, "peak": 1e-3, "floor": 1e-5, "warmup_steps": 10}


@pytest.fixture
def model(tiny_backbones: Path) -> HoneybeeForConditionalGeneration:
    vision, llm = str(tiny_backbones / "vision"), str(tiny_backbones / "llm")
    projector = {"type": "c-abstractor", "num_tokens": 4, "settings": {"depth": 1, "hidden_size": 32}}
    return HoneybeeForConditionalGeneration.from_backbones(vision, llm, projector, llm)


def test_freeze_trains_exactly_the_named_parts(model: HoneybeeForConditionalGeneration) -> None:
    counts = freeze(model, ["projector"])
    trained = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"projector"}
    size = sum(parameter.numel() for parameter in model.projector.parameters())
    assert counts["projector"] == (size, size)
    assert counts["vision"][0] == counts["llm"][0] == 0
    freeze(model.train(), ["vision", "projector", "llm"])
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.vision.training
    freeze(model, ["llm"])
    assert not model.vision.training


def test_parameter_outside_of_the_parts_is_refused(model: HoneybeeForConditionalGeneration) -> None:
    model.register_parameter("scale", torch.nn.Parameter(torch.ones(1)))
    with pytest.raises(JobError, match="outside of vision, projector and llm: scale"):
        freeze(model, ["llm"])


def test_norms_and_biases_do_not_decay(model: HoneybeeForConditionalGeneration) -> None:
    freeze(model, ["projector", "llm"])
    decayed, undecayed = parameter_groups(model, weight_decay=0.1)
    assert decayed["weight_decay"] == 0.1
    assert undecayed["weight_decay"] == 0.0
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    undecayed_names = {names[id(parameter)] for parameter in undecayed["params"]}
    assert all("norm" in name or name.endswith("bias") or ".bn" in name for name in undecayed_names if "llm" in name)
    assert "llm.model.norm.weight" in undecayed_names
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {id(p) for p in decayed["params"] + undecayed["params"]} == {id(p) for p in trained}
    assert not {id(p) for p in decayed["params"]} & {id(p) for p in undecayed["params"]}


def test_learning_rate_warms_up_and_decays_to_the_floor() -> None:
    rates = [learning_rate(step, **SCHEDULE) for step in range(100)]
    assert rates[0] == pytest.approx(1e-4)
    assert rates[9] == pytest.approx(1e-3)
    assert rates[10] == max(rates) == 1e-3
    assert rates[99] == pytest.approx(1e-5)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    middle = 1e-5 + (1e-3 - 1e-5) * 0.5 * (1 + math.cos(math.pi * (50 - 10) / 89))
    assert rates[50] == pytest.approx(middle)


def test_no_warm_up_starts_at_the_peak() -> None:
    assert learning_rate(0, steps=1, peak=1.0, floor=0.1, warmup_steps=0) == 1.0
    assert learning_rate(0, steps=5, peak=1.0, floor=0.1, warmup_steps=0) == 1.0
