"""What trains: freezing by part, parameter groups, AdamW."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from model.training.job import JobError, Train

PARTS = ("vision", "projector", "llm")


def freeze(model: nn.Module, trains: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Lets exactly the named parts of `model.vision`, `model.projector`, `model.llm` learn.

    Returns {part: (parameters that train, all its parameters)}. A frozen vision encoder is put in evaluation mode.
    Raises JobError if a parameter belongs to none of the three or to two of them (it could not be frozen by part).
    """
    owner: dict[int, str] = {}
    counts = {}
    for part in PARTS:
        module = getattr(model, part)
        learns = part in trains
        parameters = list(module.parameters())
        for parameter in parameters:
            if owner.setdefault(id(parameter), part) != part:
                raise JobError(f"{part} and {owner[id(parameter)]} share a parameter: they cannot be frozen apart")
            parameter.requires_grad_(learns)
        size = sum(parameter.numel() for parameter in parameters)
        counts[part] = (size if learns else 0, size)
        if part == "vision":
            module.train(learns)
    homeless = [name for name, parameter in model.named_parameters() if id(parameter) not in owner]
    if homeless:
        raise JobError(f"parameters outside of vision, projector and llm: {', '.join(homeless[:5])}")
    return counts


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """AdamW's groups of what trains: matrices with weight decay; norms, biases and other vectors without."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


class HeldAdamW(torch.optim.AdamW):
    """AdamW that takes no step while `held` says so: weights, moments and its count of steps stay as they are."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.held: Callable[[], bool] = lambda: False

    def step(self, closure: Any = None) -> Any:
        return None if self.held() else super().step(closure)


def adamw(model: nn.Module, train: Train) -> HeldAdamW:
    """torch's fused AdamW, which runs on CPU and CUDA without a compiler."""
    groups = parameter_groups(model, train.weight_decay)
    return HeldAdamW(groups, lr=train.learning_rate, betas=train.betas, eps=train.epsilon, fused=True)
