"""Freezes parts of the model, builds parameter groups, and makes the AdamW optimiser."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from model.training.engine.lora import is_adapter
from model.training.settings import JobError, PartName, Train

PARTS: tuple[PartName, ...] = ("vision", "projector", "llm")


def freeze(model: nn.Module, trains: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Makes exactly the named parts of `model.vision`, `model.projector`, `model.llm` trainable; in a part with
    adapters (model/training/engine/lora.py) only these.

    Returns {part: (number of trainable parameters, number of parameters)}. A frozen vision encoder is put in evaluation
    mode. Raises JobError if a parameter belongs to none of the parts or to two, as it could not be frozen by part.
    """
    owner: dict[int, str] = {}
    counts: dict[str, tuple[int, int]] = {}
    for part in PARTS:
        module = getattr(model, part)
        learns = part in trains
        parameters = dict(module.named_parameters())
        adapted = any(map(is_adapter, parameters))
        trained = 0
        for name, parameter in parameters.items():
            if owner.setdefault(id(parameter), part) != part:
                raise JobError(
                    f"{part} and {owner[id(parameter)]} share a parameter ({name}): they cannot be frozen separately"
                )
            parameter.requires_grad_(learns and (not adapted or is_adapter(name)))
            trained += parameter.numel() if parameter.requires_grad else 0
        counts[part] = (trained, sum(parameter.numel() for parameter in parameters.values()))
        if part == "vision":
            module.train(learns)
    orphans = [name for name, parameter in model.named_parameters() if id(parameter) not in owner]
    if orphans:
        raise JobError(f"the model has parameters outside of vision, projector and llm: {', '.join(orphans[:5])}")
    return counts


def parameter_groups(
    model: nn.Module, weight_decay: float, rate_scales: Mapping[PartName, float] | None = None
) -> list[dict]:
    """Returns AdamW's groups of trainable parameters: matrices with weight decay; norms, biases and other vectors
    without.

    rate_scales: the factor on the stage's learning rate for each part (default 1), stored in its groups as
    `rate_scale`. Parts with the same factor share their groups.
    """
    scales = rate_scales or {}
    scale_of = {id(p): scales.get(part, 1.0) for part in PARTS for p in getattr(model, part).parameters()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = []
    for scale in dict.fromkeys(scale_of[id(p)] for p in trained):
        own = [p for p in trained if scale_of[id(p)] == scale]
        matrices, vectors = [p for p in own if p.ndim > 1], [p for p in own if p.ndim <= 1]
        groups += [
            {"params": matrices, "weight_decay": weight_decay, "rate_scale": scale},
            {"params": vectors, "weight_decay": 0.0, "rate_scale": scale},
        ]
    return [group for group in groups if group["params"]]


class SkippableAdamW(torch.optim.AdamW):
    """AdamW that skips its step while `held()` is true: weights, moments and step count stay unchanged."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.held: Callable[[], bool] = lambda: False

    def step(self, closure: Any = None) -> Any:
        return None if self.held() else super().step(closure)


def adamw(model: nn.Module, train: Train) -> SkippableAdamW:
    """Returns torch's fused AdamW, which runs on CPU and CUDA without a compiler."""
    groups = parameter_groups(model, train.weight_decay, {part: train.rate_scale(part) for part in PARTS})
    return SkippableAdamW(groups, lr=train.learning_rate, betas=train.betas, eps=train.epsilon, fused=True)


def learning_rate(step: int, *, steps: int, peak: float, floor: float, warmup_steps: int) -> float:
    """Returns the learning rate of a step, counted from 0: linear warm-up to `peak`, then cosine decay to `floor`.

    The first step has peak / warmup_steps, step `warmup_steps` the peak, and the last step (steps - 1) the floor.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - 1 - warmup_steps)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
