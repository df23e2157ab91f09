"""Turns shares into the order of all samples: a pure function index → (dataset, example).

Shares are rounded to integer quotas with a common denominator. One period of the order is computed with Tijdeman's rule
for the chairman assignment problem (Discrete Mathematics 32, 1980), so that every prefix contains each dataset to
within one example of its share. The order repeats this period. Within a dataset, each epoch is a seeded permutation
that can be evaluated at any index without being stored.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from pipelines.core.hashing import mix64, seed64
from pipelines.mixture.shares import Balance, BalanceError, Shares, Size, shares

PERIOD = 1 << 16  # the denominator of all shares, and the length of the stored period
_ROUNDS = 6


@dataclass(frozen=True)
class Mixture:
    """The order of a stage. `quotas[d]` of every PERIOD samples come from dataset d (names sorted)."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]  # examples of each dataset
    quotas: tuple[int, ...]
    seed: int
    period: np.ndarray  # int16 (PERIOD,): dataset index at each position
    ranks: np.ndarray  # int32 (PERIOD,): number of earlier positions in the period with the same dataset

    def locate(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the dataset index and example index of each sample index: int64 arrays (n,) → (n,), (n,)."""
        indices = np.asarray(indices, dtype=np.int64)
        position = indices % PERIOD
        dataset = self.period[position].astype(np.int64)
        ordinal = (indices // PERIOD) * np.array(self.quotas)[dataset] + self.ranks[position]
        example = np.empty_like(indices)
        for d, size in enumerate(self.sizes):
            mine = dataset == d
            if mine.any():
                example[mine] = shuffled_indices(ordinal[mine], size, seed64("epoch", self.names[d], self.seed))
        return dataset, example

    def counts(self, num_samples: int) -> dict[str, int]:
        """Returns dataset → its number of samples among the first `num_samples`."""
        periods, rest = divmod(num_samples, PERIOD)
        tail = np.bincount(self.period[:rest], minlength=len(self.names))
        return {name: int(periods * self.quotas[d] + tail[d]) for d, name in enumerate(self.names)}


class MixtureError(ValueError):
    """Raised for shares or quotas that no mixture can have."""


def make_mixture(
    shares: Mapping[str, float],
    sizes: Mapping[str, int],
    seed: int,
    max_samples: Mapping[str, int] | None = None,
    num_samples: int = PERIOD,
) -> Mixture:
    """Returns the mixture for the given shares.

    shares: dataset → share, normalised here; sizes: dataset → number of examples, at least one; limits: dataset →
    maximum number among the first `num_samples` samples, respected to within one. Raises MixtureError if a share is too
    small to give its dataset one sample per period, or if the limits leave too few samples."""
    names = tuple(sorted(shares))
    if not names:
        raise MixtureError("no dataset has a share")
    exact = np.array([shares[name] for name in names], dtype=np.float64)
    quotas = _quotas(exact, names, _ceilings(names, max_samples or {}, num_samples))
    return mixture_from_quotas(dict(zip(names, quotas.tolist(), strict=True)), sizes, seed)


def mixture_from_quotas(quotas: Mapping[str, int], sizes: Mapping[str, int], seed: int) -> Mixture:
    """Returns the mixture with the given quotas. quotas: dataset → number of samples in every PERIOD samples. Raises
    MixtureError unless all are positive and sum to PERIOD."""
    names = tuple(sorted(quotas))
    if not names or sum(quotas.values()) != PERIOD or min(quotas.values()) < 1:
        raise MixtureError(
            f"quotas must be positive and sum to {PERIOD}, but sum to {sum(quotas.values())}: {dict(quotas)}"
        )
    period = _chairman_order(tuple(quotas[name] for name in names))
    ranks = np.empty(PERIOD, dtype=np.int32)
    for d, name in enumerate(names):
        ranks[period == d] = np.arange(quotas[name])
    return Mixture(
        names, tuple(sizes[name] for name in names), tuple(quotas[name] for name in names), seed, period, ranks
    )


def _ceilings(names: tuple[str, ...], max_samples: Mapping[str, int], num_samples: int) -> np.ndarray:
    """Returns the largest allowed quota of each dataset. Limits are rounded down to quotas. They are rounded up only if
    the quotas could not sum to PERIOD otherwise and the order is so short that this adds at most one sample."""
    down = [min(PERIOD, max_samples[n] * PERIOD // num_samples) if n in max_samples else PERIOD for n in names]
    if sum(down) < PERIOD and num_samples <= PERIOD:
        down = [min(PERIOD, -(-max_samples[n] * PERIOD // num_samples)) for n in names]
    if sum(down) < PERIOD:
        raise MixtureError(
            f"the limits allow {sum(down) * num_samples // PERIOD:,} samples when rounded down to multiples of "
            f"1/{PERIOD} of the order, but {num_samples:,} are wanted: raise the limits slightly"
        )
    return np.array(down, dtype=np.int64)


def _quotas(shares: np.ndarray, names: tuple[str, ...], ceilings: np.ndarray) -> np.ndarray:
    """Rounds the normalised shares by largest remainder to integers that sum to PERIOD, none above its ceiling."""
    shares = shares / shares.max()  # so that the sum of huge values is finite
    exact = shares / shares.sum() * PERIOD
    quotas = np.minimum(np.floor(exact).astype(np.int64), ceilings)
    order = np.argsort(quotas - exact, kind="stable")
    while missing := PERIOD - int(quotas.sum()):
        room = order[quotas[order] < ceilings[order]]
        quotas[room[:missing]] += 1
    if (quotas == 0).any():
        lost = [name for name, quota in zip(names, quotas, strict=True) if quota == 0]
        raise MixtureError(
            f"{', '.join(lost)}: a share below 1/{PERIOD} is too small; raise it or its limit on epochs, or remove it"
        )
    return quotas


@lru_cache
def _chairman_order(wanted: tuple[int, ...]) -> np.ndarray:
    """Applies Tijdeman's rule in integers: position n gets the dataset with the earliest deadline among those that are
    owed enough. For k datasets, no prefix deviates by more than 1 - 1/(2k - 2) examples.

    The result is read-only: it takes half a second, and plan, shards and checks of a run ask for the same one."""
    k, quotas = len(wanted), np.array(wanted, dtype=np.int64)
    order = np.zeros(PERIOD, dtype=np.int16)
    if k == 1:
        order.flags.writeable = False
        return order
    scale = 2 * k - 2
    given = np.zeros(k, dtype=np.int64)
    for n in range(1, PERIOD + 1):
        owed = scale * (n * quotas - given * PERIOD)
        # slack = quota × number of positions until the bound is reached if the dataset gets no further samples
        slack = (scale - 1) * PERIOD - owed
        deadline = np.where(owed >= PERIOD, slack / quotas, np.inf)
        chosen = int(np.argmin(deadline))
        order[n - 1] = chosen
        given[chosen] += 1
    order.flags.writeable = False
    return order


def shuffled_indices(ordinals: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Returns the example at each step of an endless shuffled pass over `size` examples: (n,) → (n,) in [0, size).

    Each epoch has its own permutation: a Feistel network on the next even power of two, with cycle walking.
    """
    epoch, position = np.divmod(ordinals.astype(np.uint64), np.uint64(size))
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    epoch_key = mix64(epoch, seed)
    result = position
    todo = np.arange(len(position))
    while len(todo):
        left, right = result[todo] >> half, result[todo] & mask
        for round_number in range(_ROUNDS):
            keyed = mix64(right ^ epoch_key[todo], seed + round_number & 0xFFFFFFFFFFFFFFFF)
            left, right = right, left ^ (keyed & mask)
        result[todo] = (left << half) | right
        todo = todo[result[todo] >= np.uint64(size)]
    return result.astype(np.int64)


def mix(
    balance: Balance,
    weights: Mapping[str, float] | None,
    built: Mapping[str, Mapping[str, Any]],
    num_samples: int,
    seed: int,
) -> tuple[Shares, Mixture]:
    """Returns the shares and the mixture of a stage. built: dataset → the manifest of its examples, or a stand-in with
    `task`, `num_examples` and `num_supervised`. Raises BalanceError or MixtureError if there is no such mixture."""
    for name, m in built.items():
        if not m["num_examples"] and m.get("rows", {}).get("rejects"):
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in m["rows"]["rejects"].items())
            raise BalanceError(f"{name}: in the mixture, but has no examples: of {m['rows']['read']:,} rows, {reasons}")
    sizes = {name: Size(m["task"], m["num_examples"], m["num_supervised"]) for name, m in built.items()}
    got = shares(balance, weights, sizes, num_samples)
    counts = {name: size.examples for name, size in sizes.items()}
    return got, make_mixture(got.examples, counts, seed, got.max_samples, num_samples)
