"""Plans which samples go into which shard and row group, before anything is written, from the examples' metadata.
Shards are about equal in bytes, and each can be written independently.

The *weight* of a sample is the number of bytes that it is expected to take in a shard. The cumulative weight is cut
into equal parts, and each cut is moved to the nearest sample boundary, so no shard deviates from the mean by more than
the heaviest sample. Shards also have similar token counts, because every range of the order has the same mixture.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.examples.reader import ExampleFiles
from pipelines.images.doubts import Doubts
from pipelines.images.shrink import Shrink
from pipelines.mixture.order import Mixture

# Upper estimates of the bytes that compressed texts, token ids and loss mask take: see docs/benchmarks.md.
BYTES_PER_TOKEN = 2
BYTES_PER_SAMPLE = 30
BYTES_PER_IMAGE = 70  # for the name and the checksum
SIZE_COLUMNS = ("num_tokens", "image_bytes", "image_side")

# A reader holds one row group at a time: about GROUP_BYTES at most, and never more than 4,096 rows.
GROUP_BYTES = 16 << 20
GROUP_BYTES_PER_ROW = GROUP_BYTES // 4096

_HEAVIEST = np.iinfo(np.int32).max
_CHUNK = 1 << 20  # samples processed together
_BLOCK = 64  # samples whose weights are stored as one sum


@dataclass(frozen=True)
class ImageMode:
    """How shards store images. mode: `embed` stores their bytes, `reference` their path below the image root and the
    checksum of the file, `skip` only the path. shrink: how embedded images are shrunk, if at all."""

    mode: str = "embed"
    shrink: Shrink | None = None

    def facts(self) -> dict[str, object]:
        return {"mode": self.mode, "shrink": self.shrink and self.shrink.facts()}


@dataclass(frozen=True)
class ShardPlan:
    """All that a worker needs to write any shard of a stage. Shard i has the samples starts[i] … starts[i + 1] - 1."""

    out: Path
    examples: Mapping[str, Path]
    image_roots: Mapping[str, Path]
    image_mode: ImageMode
    mixture: Mixture
    starts: np.ndarray  # int64 (shards + 1,)

    @property
    def num_shards(self) -> int:
        return len(self.starts) - 1

    @property
    def doubts(self) -> Doubts:
        """Where an image is noted whose bytes are not those that were measured."""
        return Doubts.of(self.out.parents[1])

    def samples(self, shard: int) -> np.ndarray:
        return np.arange(self.starts[shard], self.starts[shard + 1])

    def file(self, shard: int) -> Path:
        return self.out / f"shard-{shard:05d}-of-{self.num_shards:05d}.parquet"

    def facts_file(self, shard: int) -> Path:
        return self.out / f"shard-{shard:05d}.json"


def byte_sizes(rows: pa.Table | pa.RecordBatch, image_mode: ImageMode) -> np.ndarray:
    """Returns the weights of the examples in `rows`, which has WEIGHT_COLUMNS: int64 (n,)."""
    text = rows.column("num_tokens").to_numpy().astype(np.int64) * BYTES_PER_TOKEN + BYTES_PER_SAMPLE
    lists = rows.column("image_bytes")
    count = pc.fill_null(pc.list_value_length(lists), 0).to_numpy().astype(np.int64)
    each = np.full(count.sum(), BYTES_PER_IMAGE, np.int64)
    if image_mode.mode == "embed":
        num_bytes, side = (
            pc.fill_null(pc.list_flatten(rows.column(name)), 0).to_numpy().astype(np.int64)
            for name in ("image_bytes", "image_side")
        )
        each += num_bytes if image_mode.shrink is None else image_mode.shrink.expected_bytes(num_bytes, side)
    ends = np.cumsum(count)
    running = np.append(0, np.cumsum(each))
    return text + running[ends] - running[ends - count]


def cut_shards(
    mixture: Mixture, examples: Mapping[str, Path], num_samples: int, shard_bytes: int, image_mode: ImageMode
) -> np.ndarray:
    """Returns the first sample of each shard, followed by the number of samples: int64 (shards + 1,)."""
    return cut_evenly(sample_sizes(mixture, examples, image_mode), num_samples, shard_bytes)


def sample_sizes(
    mixture: Mixture, examples: Mapping[str, Path], image_mode: ImageMode
) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function from sample indices (n,) to weights, int64 (n,). It holds four bytes per example in memory."""
    tables = []
    for name in mixture.names:
        batches = ExampleFiles.of(examples[name]).batches(SIZE_COLUMNS)
        tables.append(
            np.concatenate([byte_sizes(batch, image_mode).clip(max=_HEAVIEST).astype(np.int32) for batch in batches])
        )

    return in_order(mixture, tables)


def in_order(mixture: Mixture, tables: Sequence[np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function from sample indices (n,) to weights, int64 (n,). tables: the weights of the examples of each
    dataset of the mixture."""

    def weights_of(indices: np.ndarray) -> np.ndarray:
        dataset, example = mixture.locate(indices)
        found = np.empty(len(indices), np.int64)
        for number, table in enumerate(tables):
            mine = dataset == number
            found[mine] = table[example[mine]]
        return found

    return weights_of


def cut_evenly(weights_of: Callable[[np.ndarray], np.ndarray], count: int, most: int) -> np.ndarray:
    """Cuts 0 … count - 1 into the fewest runs of about equal weight such that none exceeds `most` by more than its
    heaviest item. Returns the first item of each run, followed by `count`. weights_of: items (n,) → int64 (n,), all
    positive; it is called from several threads. Uses 1/8 byte of memory per item."""

    def sums_of_blocks(start: int) -> np.ndarray:
        each = weights_of(np.arange(start, min(start + _CHUNK, count)))
        return np.add.reduceat(each, np.arange(0, len(each), _BLOCK))

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # numpy releases the GIL
        block_sums = np.concatenate(list(pool.map(sums_of_blocks, range(0, count, _CHUNK))))
    ends = np.cumsum(block_sums)
    total = int(ends[-1])
    runs = min(-(-total // most), count)
    number = np.arange(1, runs)
    targets = total // runs * number + total % runs * number // runs
    blocks = np.searchsorted(ends, targets)
    cuts = [np.zeros(1, np.int64)]
    for start in range(0, len(targets), _CHUNK // _BLOCK):
        block, target = blocks[start : start + _CHUNK // _BLOCK], targets[start : start + _CHUNK // _BLOCK]
        items = block[:, None] * _BLOCK + np.arange(_BLOCK)
        inside = items < count
        each = np.zeros(items.shape, np.int64)
        each[inside] = weights_of(items[inside])
        before = (ends[block] - block_sums[block])[:, None] + np.cumsum(each, axis=1) - each
        # The cut is at the start or end of the item that the target falls into, whichever is nearer.
        column = (before < target[:, None]).sum(axis=1) - 1
        row = np.arange(len(column))
        column = np.minimum(column, inside.sum(axis=1) - 1)
        into = target - before[row, column]
        cuts.append(items[row, column] + (2 * into > each[row, column]))
    return np.unique(np.append(np.concatenate(cuts), count))


def cut_groups(each: np.ndarray) -> np.ndarray:
    """Returns the first sample of each row group of a shard whose samples have the weights `each`, followed by the
    number of samples: int64 (groups + 1,)."""
    per_row = each + GROUP_BYTES_PER_ROW
    return cut_evenly(lambda items: per_row[items], len(each), GROUP_BYTES)
