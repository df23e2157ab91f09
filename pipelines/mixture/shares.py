"""Balances the datasets of a stage (paper section 4, Table 5a): pure functions from dataset sizes to shares.

A strategy gives each dataset a share of a unit: examples or supervised tokens. Shares of tokens are converted to shares
of examples by each dataset's mean number of tokens. A limit on epochs caps a dataset's share and redistributes the
excess to the others in proportion to their shares. `pipelines/mixture/order.py` derives the order of the samples.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

CAP = 100_000  # examples; "per-sample-100k" in the paper
Positive = Annotated[float, Field(gt=0)]
Strategy = Literal["tuned", "per-dataset", "per-task", "per-sample", "size", "temperature"]

_MOST_EPOCHS = 1e9  # a larger max_epochs has the same effect; avoids overflow


class BalanceError(ValueError):
    """Raised for shares that cannot be achieved; the message says what to change."""


class Balance(BaseModel):
    """A balancing strategy with its parameters.

    tuned         manual shares, by name
    per-dataset   equal shares
    per-task      equal shares for tasks and, within a task, for its datasets, so that its largest one does not dominate
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
            raise ValueError("`cap` is only allowed with the strategy per-sample")
        if self.strategy == "per-sample" and self.cap is None and self.unit != "examples":
            raise ValueError("the strategy per-sample needs a `cap` if the unit is supervised_tokens")
        if (self.temperature is not None) != (self.strategy == "temperature"):
            raise ValueError("`temperature` is required with the strategy temperature, and not allowed with any other")
        return self

    @property
    def wants_sizes(self) -> bool:
        """Whether the strategy's shares depend on the sizes of the datasets."""
        return self.strategy in ("per-sample", "size", "temperature")

    @property
    def needs_sizes(self) -> bool:
        """Whether the final shares of the datasets depend on their sizes."""
        return self.wants_sizes or self.unit != "examples" or self.max_epochs is not None


@dataclass(frozen=True)
class Size:
    """The task and size of a dataset."""

    task: str
    examples: int
    supervised: float  # total number of supervised tokens


@dataclass(frozen=True)
class Shares:
    """Shares by dataset. `wanted` holds shares of the unit; `examples`, shares of the samples after the limits."""

    wanted: dict[str, float]
    examples: dict[str, float]
    max_samples: dict[str, int]  # maximum number of samples that max_epochs allows
    capped: frozenset[str]  # the datasets that are at their limit


def wanted_shares(
    balance: Balance,
    names: Sequence[str],
    weights: Mapping[str, float] | None,
    tasks: Mapping[str, str],
    sizes: Mapping[str, float] | None,
) -> dict[str, float]:
    """Returns the strategy's shares, which sum to 1.

    weights: the shares of `tuned`; tasks: dataset → task; sizes: dataset → size in the unit, needed only by strategies
    that depend on sizes."""
    if balance.strategy == "tuned":
        assert weights is not None  # checked with the recipe
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
            largest = max(sizes[name] for name in names) or 1  # scaled so that the power cannot overflow
            raw = {name: (sizes[name] / largest) ** power for name in names}
    return _normalised(raw)


def shares(
    balance: Balance, weights: Mapping[str, float] | None, sizes: Mapping[str, Size], num_samples: int
) -> Shares:
    """Returns each dataset's share of `num_samples` samples. sizes: of all datasets of the stage. Raises BalanceError
    if a dataset has no examples or if the limits on epochs allow fewer samples than wanted."""
    in_tokens = balance.unit == "supervised_tokens"
    empty = sorted(n for n, size in sizes.items() if size.examples < 1 or (in_tokens and not size.supervised))
    if empty:
        raise BalanceError(
            f"{', '.join(empty)}: in the mixture, but has no examples; check its rejects, or remove it from the mixture"
        )
    amounts = {name: size.supervised if in_tokens else float(size.examples) for name, size in sizes.items()}
    tasks = {name: size.task for name, size in sizes.items()}
    wanted = wanted_shares(balance, sorted(sizes), weights, tasks, amounts)
    examples = wanted
    if in_tokens:
        examples = _normalised({name: share * sizes[name].examples / amounts[name] for name, share in wanted.items()})
    max_samples = _max_samples(balance, sizes)
    examples, capped = cap_shares(examples, max_samples, num_samples)
    return Shares(wanted, examples, max_samples, capped)


def cap_shares(
    wanted: Mapping[str, float], max_samples: Mapping[str, int], num_samples: int
) -> tuple[dict[str, float], frozenset[str]]:
    """Returns shares that respect the limits on `num_samples` samples, and the datasets that are at their limit. Any
    excess is redistributed in proportion to the shares until no dataset exceeds its limit. Raises BalanceError if all
    datasets are at their limit and samples remain."""
    free = dict(wanted)
    held: dict[str, int] = {}
    while True:
        rest = num_samples - sum(held.values())
        total = sum(free.values())
        over = [n for n, share in free.items() if n in max_samples and rest * share > max_samples[n] * total]
        if not over:
            break
        for name in over:
            held[name] = max_samples[name]
            del free[name]
    if rest > 0 and not free:
        raise BalanceError(
            f"max_epochs allows only {sum(held.values()):,} samples, but {num_samples:,} are wanted: allow more "
            "epochs, add datasets or take fewer steps"
        )
    if not held:
        return free, frozenset()
    got = {name: held[name] / num_samples for name in held}
    got |= {name: rest * share / total / num_samples for name, share in free.items()}
    return {name: got[name] for name in wanted}, frozenset(held)


def _max_samples(balance: Balance, sizes: Mapping[str, Size]) -> dict[str, int]:
    """Returns the maximum number of samples of each dataset that max_epochs allows."""
    allowed = balance.max_epochs
    by_name = allowed if isinstance(allowed, dict) else dict.fromkeys(sizes, allowed)
    return {  # rounded before floor, because 0.29 × 100 is slightly below 29
        name: math.floor(round(min(epochs, _MOST_EPOCHS) * sizes[name].examples, 6))
        for name, epochs in by_name.items()
        if epochs
    }


def _normalised(raw: Mapping[str, float]) -> dict[str, float]:
    largest = max(raw.values())  # divided out first, so that the sum of huge values is finite
    total = sum(value / largest for value in raw.values())
    return {name: value / largest / total for name, value in raw.items()}
