"""Everything that the shards of a stage depend on besides their examples and images, as one value."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.mixture.shares import Balance
from pipelines.shards.plan import ImageMode


@dataclass(frozen=True)
class ShardSettings:
    """weights: dataset → share, for the strategy `tuned`, else None. shard_bytes: about the maximum size of a shard
    (pipelines/shards/plan.py). tokenizer: a directory of `prepare_tokenizer`."""

    balance: Balance
    num_samples: int
    shard_bytes: int
    tokenizer: Path
    weights: Mapping[str, float] | None = None
    image_mode: ImageMode = ImageMode()
    seed: int = 0

    def key(self) -> dict[str, Any]:
        """Returns what the shards depend on, as JSON values. The tokenizer is part of the examples' keys."""
        return {
            "balance": self.balance.model_dump(),
            "weights": self.weights and {name: self.weights[name] for name in sorted(self.weights)},
            "num_samples": self.num_samples,
            "shard_bytes": self.shard_bytes,
            "images": self.image_mode.facts(),
            "seed": self.seed,
        }
