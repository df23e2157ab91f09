"""Balancing: how often each dataset of a stage is seen (paper section 4, Table 5a), as pure functions of sizes.

A strategy gives each dataset its share, in a unit: examples, or supervised tokens. Shares of tokens become shares of
examples by each dataset's mean. A limit on epochs takes what is above it and gives it to the others by share.
`pipelines/mixture.py` makes the order of the samples from the result.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

CAP = 100_000  # examples; the paper's per-sample-100k
Positive = Annotated[float, Field(gt=0)]
Strategy = Literal["tuned", "per-dataset", "per-task", "per-sample", "size", "temperature"]

_MOST_EPOCHS = 1e9  # more is no limit


class BalanceError(ValueError):
    """Shares that cannot be had; the message says what to change."""


class Balance(BaseModel):
    """A strategy with its numbers.

    tuned         shares by name, by hand
    per-dataset   equal shares
    per-task      equal shares of tasks; inside a task equal shares of its datasets, so that the largest of them does
                  not speak for the task alone
    per-sample    share ∝ min(size, cap)
    size          share ∝ size
    temperature   share ∝ size^(1/temperature)
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    strategy: Strategy
    """How the shares are computed; if unset in a recipe, `tuned` with `weights` and `per-dataset` with `datasets`."""

    unit: Literal["examples", "supervised_tokens"] = "examples"
    """Unit of shares, sizes and `cap`."""

    cap: Annotated[int, Field(gt=0)] | None = None
    """Size above which a dataset gets no larger share, for `per-sample`; 100,000 examples if unset."""

    temperature: Positive | None = None
    """Temperature of the strategy `temperature`: shares are proportional to size^(1 / temperature)."""

    max_epochs: Positive | dict[str, Positive] | None = None
    """Maximum number of epochs, for all datasets or by dataset; what exceeds it goes to the other datasets."""

    @model_validator(mode="after")
    def _numbers_fit(self) -> "Balance":
        if self.cap is not None and self.strategy != "per-sample":
            raise ValueError("cap belongs to the strategy per-sample")
        if self.strategy == "per-sample" and self.cap is None and self.unit != "examples":
            raise ValueError("say the cap of per-sample in supervised tokens")
        if (self.temperature is not None) != (self.strategy == "temperature"):
            raise ValueError("the strategy temperature needs a temperature, and no other takes one")
        return self

    @property
    def wants_sizes(self) -> bool:
        """Whether the shares that are wanted depend on how much there is of each dataset."""
        return self.strategy in ("per-sample", "size", "temperature")

    @property
    def needs_sizes(self) -> bool:
        """Whether the shares that the datasets get depend on it."""
        return self.wants_sizes or self.unit != "examples" or self.max_epochs is not None


@dataclass(frozen=True)
class Size:
    """What there is of a dataset."""

    task: str
    examples: int
    supervised: float  # supervised tokens of all its examples


@dataclass(frozen=True)
class Shares:
    """By dataset. `wanted` are shares of the unit; `examples` are shares of the samples, after the limits."""

    wanted: dict[str, float]
    examples: dict[str, float]
    limits: dict[str, int]  # the most samples that a limit on epochs allows
    limited: frozenset[str]  # those at their limit


def wanted_shares(
    balance: Balance,
    names: Sequence[str],
    weights: Mapping[str, float] | None,
    tasks: Mapping[str, str],
    sizes: Mapping[str, float] | None,
) -> dict[str, float]:
    """The strategy's shares, which sum to 1. weights: those of `tuned`; tasks: dataset → task; sizes: dataset → how
    much there is of it, in the unit, which only the strategies that depend on sizes read."""
    if balance.strategy == "tuned":
        assert weights is not None  # the recipe's own check
        raw = dict(weights)
    elif balance.strategy == "per-dataset":
        raw = dict.fromkeys(names, 1.0)
    elif balance.strategy == "per-task":
        of_task = [tasks[name] for name in names]
        raw = {name: 1 / of_task.count(tasks[name]) for name in names}
    else:
        assert sizes is not None
        if balance.strategy == "per-sample":
            raw = {name: min(sizes[name], balance.cap or CAP) for name in names}
        else:
            power = 1 / (balance.temperature or 1)
            largest = max(sizes[name] for name in names) or 1  # a power of a huge number may be none
            raw = {name: (sizes[name] / largest) ** power for name in names}
    return _normalised(raw)


def shares(
    balance: Balance, weights: Mapping[str, float] | None, sizes: Mapping[str, Size], num_samples: int
) -> Shares:
    """What each dataset gets of `num_samples` samples. sizes: of every dataset of the stage. Raises BalanceError for a
    dataset without examples, and where the limits on epochs leave fewer samples than wanted."""
    in_tokens = balance.unit == "supervised_tokens"
    empty = sorted(n for n, size in sizes.items() if size.examples < 1 or (in_tokens and not size.supervised))
    if empty:
        raise BalanceError(f"{', '.join(empty)}: a share in the mixture, but no example; see its rejects, or drop it")
    amounts = {name: size.supervised if in_tokens else float(size.examples) for name, size in sizes.items()}
    tasks = {name: size.task for name, size in sizes.items()}
    wanted = wanted_shares(balance, sorted(sizes), weights, tasks, amounts)
    examples = wanted
    if in_tokens:
        examples = _normalised({name: share * sizes[name].examples / amounts[name] for name, share in wanted.items()})
    limits = _limits(balance, sizes)
    examples, limited = limit(examples, limits, num_samples)
    return Shares(wanted, examples, limits, limited)


def limit(
    wanted: Mapping[str, float], limits: Mapping[str, int], num_samples: int
) -> tuple[dict[str, float], frozenset[str]]:
    """Shares of which none gives its dataset more of `num_samples` than its limit: what is above goes to the others by
    share, again and again until none is above. Also returns who is at the limit. Raises BalanceError when all are."""
    free = dict(wanted)
    held: dict[str, int] = {}
    while True:
        rest = num_samples - sum(held.values())
        total = sum(free.values())
        over = [n for n, share in free.items() if n in limits and rest * share > limits[n] * total]
        if not over:
            break
        for name in over:
            held[name] = limits[name]
            del free[name]
    if rest > 0 and not free:
        raise BalanceError(
            f"max_epochs leaves {sum(held.values()):,} samples, and {num_samples:,} are wanted: allow more epochs, add "
            "datasets or take fewer steps"
        )
    if not held:
        return free, frozenset()
    got = {name: held[name] / num_samples for name in held}
    got |= {name: rest * share / total / num_samples for name, share in free.items()}
    return {name: got[name] for name in wanted}, frozenset(held)


def _limits(balance: Balance, sizes: Mapping[str, Size]) -> dict[str, int]:
    """The most samples of each dataset that max_epochs allows."""
    allowed = balance.max_epochs
    by_name = allowed if isinstance(allowed, dict) else dict.fromkeys(sizes, allowed)
    return {  # rounded first: 0.29 × 100 is a little below 29
        name: math.floor(round(min(epochs, _MOST_EPOCHS) * sizes[name].examples, 6))
        for name, epochs in by_name.items()
        if epochs
    }


def _normalised(raw: Mapping[str, float]) -> dict[str, float]:
    largest = max(raw.values())  # so that the sum of huge ones is finite
    total = sum(value / largest for value in raw.values())
    return {name: value / largest / total for name, value in raw.items()}
