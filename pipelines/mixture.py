"""Shares → the order of all samples: a pure function index → (dataset, example).

Shares become integers over one denominator. One period of the order is computed once with Tijdeman's rule for the
chairman assignment problem (Discrete Mathematics 32, 1980): every prefix holds each dataset within one example of
its share. Period after period repeats it; within a dataset each epoch is a seeded permutation that is computed for
any place without being stored.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipelines.hashing import mix64, seed64

PERIOD = 1 << 16  # the denominator of all shares, and the length of the stored period
_ROUNDS = 6


@dataclass(frozen=True)
class Mixture:
    """The order of a stage. `quotas[d]` of every PERIOD samples come from dataset d (names sorted)."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]  # examples of each dataset
    quotas: tuple[int, ...]
    seed: int
    period: np.ndarray  # int16 (PERIOD,): the dataset of each place
    ranks: np.ndarray  # int32 (PERIOD,): how many of that dataset stand before it in the period

    def locate(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The dataset number and the example number of each sample index: int64 arrays (n,) → (n,), (n,)."""
        indices = np.asarray(indices, dtype=np.int64)
        place = indices % PERIOD
        dataset = self.period[place].astype(np.int64)
        ordinal = (indices // PERIOD) * np.array(self.quotas)[dataset] + self.ranks[place]
        example = np.empty_like(indices)
        for d, size in enumerate(self.sizes):
            mine = dataset == d
            if mine.any():
                example[mine] = shuffled(ordinal[mine], size, seed64("epoch", self.names[d], self.seed))
        return dataset, example

    def counts(self, num_samples: int) -> dict[str, int]:
        """How many of the first `num_samples` samples come from each dataset."""
        periods, rest = divmod(num_samples, PERIOD)
        tail = np.bincount(self.period[:rest], minlength=len(self.names))
        return {name: int(periods * self.quotas[d] + tail[d]) for d, name in enumerate(self.names)}


class MixtureError(ValueError):
    """Shares that give no mixture."""


def make_mixture(
    shares: Mapping[str, float],
    sizes: Mapping[str, int],
    seed: int,
    limits: Mapping[str, int] | None = None,
    num_samples: int = PERIOD,
) -> Mixture:
    """shares: dataset → share, normalised here; sizes: dataset → number of examples, at least one; limits: dataset →
    the most of the first `num_samples` samples that it may give, kept to within one. Raises MixtureError for a share
    too small to give its dataset one sample in a period, and for limits that leave too little."""
    names = tuple(sorted(shares))
    if not names:
        raise MixtureError("no dataset has a share")
    exact = np.array([shares[name] for name in names], dtype=np.float64)
    quotas = _quotas(exact, names, _ceilings(names, limits or {}, num_samples))
    return mixture_of(dict(zip(names, quotas.tolist(), strict=True)), sizes, seed)


def mixture_of(quotas: Mapping[str, int], sizes: Mapping[str, int], seed: int) -> Mixture:
    """quotas: dataset → how many of every PERIOD samples it gives. Raises MixtureError unless they add up."""
    names = tuple(sorted(quotas))
    if not names or sum(quotas.values()) != PERIOD or min(quotas.values()) < 1:
        raise MixtureError(f"quotas of {sum(quotas.values())} of {PERIOD} samples: {dict(quotas)}")
    period = _chairman_order(np.array([quotas[name] for name in names], dtype=np.int64))
    ranks = np.empty(PERIOD, dtype=np.int32)
    for d, name in enumerate(names):
        ranks[period == d] = np.arange(quotas[name])
    return Mixture(
        names, tuple(sizes[name] for name in names), tuple(quotas[name] for name in names), seed, period, ranks
    )


def _ceilings(names: tuple[str, ...], limits: Mapping[str, int], num_samples: int) -> np.ndarray:
    """The largest quota of each dataset: rounded down, and up only where a period is too short for the difference to
    be more than one sample and the limits leave nothing else."""
    down = [min(PERIOD, limits[n] * PERIOD // num_samples) if n in limits else PERIOD for n in names]
    if sum(down) < PERIOD and num_samples <= PERIOD:
        down = [min(PERIOD, -(-limits[n] * PERIOD // num_samples)) for n in names]
    if sum(down) < PERIOD:
        raise MixtureError(
            f"the limits leave {sum(down) * num_samples // PERIOD:,} samples in whole 1/{PERIOD} of the order, and "
            f"{num_samples:,} are wanted: allow a little more"
        )
    return np.array(down, dtype=np.int64)


def _quotas(shares: np.ndarray, names: tuple[str, ...], ceilings: np.ndarray) -> np.ndarray:
    """Largest-remainder rounding of the normalised shares to integers that sum to PERIOD, none above its ceiling."""
    shares = shares / shares.max()  # so that the sum of huge ones is finite
    exact = shares / shares.sum() * PERIOD
    quotas = np.minimum(np.floor(exact).astype(np.int64), ceilings)
    order = np.argsort(quotas - exact, kind="stable")
    while missing := PERIOD - int(quotas.sum()):
        room = order[quotas[order] < ceilings[order]]
        quotas[room[:missing]] += 1
    if (quotas == 0).any():
        lost = [name for name, quota in zip(names, quotas, strict=True) if quota == 0]
        raise MixtureError(
            f"{', '.join(lost)}: a share below 1/{PERIOD} cannot be kept; raise it, or its limit on epochs, or drop it"
        )
    return quotas


def _chairman_order(quotas: np.ndarray) -> np.ndarray:
    """Tijdeman's rule in integers: at place n, of the datasets that are owed enough, the one whose claim runs out
    first. The deviation of every prefix stays at most 1 - 1/(2k - 2) examples for k datasets."""
    k = len(quotas)
    if k == 1:
        return np.zeros(PERIOD, dtype=np.int16)
    scale = 2 * k - 2
    given = np.zeros(k, dtype=np.int64)
    order = np.empty(PERIOD, dtype=np.int16)
    for n in range(1, PERIOD + 1):
        owed = scale * (n * quotas - given * PERIOD)
        # Places until the bound is reached if the dataset gets nothing more, times its quota.
        slack = (scale - 1) * PERIOD - owed
        deadline = np.where(owed >= PERIOD, slack / quotas, np.inf)
        chosen = int(np.argmin(deadline))
        order[n - 1] = chosen
        given[chosen] += 1
    return order


def shuffled(ordinals: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Where each step of an endless walk over `size` examples lands: (n,) → (n,) in [0, size).

    Each epoch is a permutation of its own: a Feistel network over the next even power of two, walked until inside.
    """
    epoch, place = np.divmod(ordinals.astype(np.uint64), np.uint64(size))
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    epoch_key = mix64(epoch, seed)
    result = place
    todo = np.arange(len(place))
    while len(todo):
        left, right = result[todo] >> half, result[todo] & mask
        for round_number in range(_ROUNDS):
            keyed = mix64(right ^ epoch_key[todo], seed + round_number & 0xFFFFFFFFFFFFFFFF)
            left, right = right, left ^ (keyed & mask)
        result[todo] = (left << half) | right
        todo = todo[result[todo] >= np.uint64(size)]
    return result.astype(np.int64)
