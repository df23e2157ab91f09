"""Which samples stand in which shard, and in which row group of it: cut before anything is written, from what the
examples tell of themselves, so that shards are even in bytes and each can be written alone.

A sample *weighs* the bytes that it is expected to take in a shard. Sample after sample, the weights are laid out in one
line, which is cut into equal parts; each cut moves to the nearest end of a sample. So no shard is further from the mean
than the heaviest sample weighs. Tokens follow: by the exact quotas every stretch of the order holds the same mixture.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.example_files import ExampleFiles
from pipelines.mixture import Mixture
from pipelines.shrink import Shrink

# Bytes that compressed texts, token ids and loss mask take, rather too many: see benchmarks/README.md.
BYTES_PER_TOKEN = 2
BYTES_PER_SAMPLE = 30
BYTES_PER_IMAGE = 70  # of names and sums
WEIGHT_COLUMNS = ("num_tokens", "image_bytes", "image_side")

# A reader holds one row group at a time: at most so many bytes, and never more than 4,096 rows.
GROUP_BYTES = 16 << 20
GROUP_BYTES_PER_ROW = GROUP_BYTES // 4096

_HEAVIEST = np.iinfo(np.int32).max
_CHUNK = 1 << 20  # samples looked at together
_BLOCK = 64  # samples whose weight is kept as one sum


@dataclass(frozen=True)
class Pictures:
    """What shards hold of pictures. embed: their bytes; reference: the path below the image root and the sum of the
    file; skip: the path alone. shrink: of what is embedded."""

    mode: str = "embed"
    shrink: Shrink | None = None

    def facts(self) -> dict[str, object]:
        return {"mode": self.mode, "shrink": self.shrink and self.shrink.facts()}


@dataclass(frozen=True)
class ShardPlan:
    """What a worker needs to write any shard of a stage. Shard i holds the samples starts[i] … starts[i + 1] - 1."""

    out: Path
    examples: Mapping[str, Path]
    image_roots: Mapping[str, Path]
    pictures: Pictures
    mixture: Mixture
    starts: np.ndarray  # int64 (shards + 1,)

    @property
    def num_shards(self) -> int:
        return len(self.starts) - 1

    def samples(self, shard: int) -> np.ndarray:
        return np.arange(self.starts[shard], self.starts[shard + 1])

    def file(self, shard: int) -> Path:
        return self.out / f"shard-{shard:05d}-of-{self.num_shards:05d}.parquet"

    def facts_file(self, shard: int) -> Path:
        return self.out / f"shard-{shard:05d}.json"


def weights(rows: pa.Table | pa.RecordBatch, pictures: Pictures) -> np.ndarray:
    """(n,) int64: what each example of `rows`, with WEIGHT_COLUMNS, weighs."""
    text = rows.column("num_tokens").to_numpy().astype(np.int64) * BYTES_PER_TOKEN + BYTES_PER_SAMPLE
    lists = rows.column("image_bytes")
    count = pc.fill_null(pc.list_value_length(lists), 0).to_numpy().astype(np.int64)
    each = np.full(count.sum(), BYTES_PER_IMAGE, np.int64)
    if pictures.mode == "embed":
        num_bytes, side = (
            pc.fill_null(pc.list_flatten(rows.column(name)), 0).to_numpy().astype(np.int64)
            for name in ("image_bytes", "image_side")
        )
        each += num_bytes if pictures.shrink is None else pictures.shrink.expected_bytes(num_bytes, side)
    ends = np.cumsum(count)
    running = np.append(0, np.cumsum(each))
    return text + running[ends] - running[ends - count]


def cut_shards(
    mixture: Mixture, examples: Mapping[str, Path], num_samples: int, shard_bytes: int, pictures: Pictures
) -> np.ndarray:
    """(shards + 1,) int64: the first sample of each shard, and the number of samples."""
    return cut_evenly(sample_weights(mixture, examples, pictures), num_samples, shard_bytes)


def sample_weights(
    mixture: Mixture, examples: Mapping[str, Path], pictures: Pictures
) -> Callable[[np.ndarray], np.ndarray]:
    """What gives the weights of samples: places in the order (n,) → int64 (n,). Keeps four bytes for each example."""
    tables = []
    for name in mixture.names:
        batches = ExampleFiles.of(examples[name]).batches(WEIGHT_COLUMNS)
        tables.append(
            np.concatenate([weights(batch, pictures).clip(max=_HEAVIEST).astype(np.int32) for batch in batches])
        )

    return in_order(mixture, tables)


def in_order(mixture: Mixture, tables: Sequence[np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """tables: of each dataset of the mixture the weights of its examples. Returns what gives those of places in the
    order: (n,) → int64 (n,)."""

    def weights_of(indices: np.ndarray) -> np.ndarray:
        dataset, example = mixture.locate(indices)
        found = np.empty(len(indices), np.int64)
        for number, table in enumerate(tables):
            mine = dataset == number
            found[mine] = table[example[mine]]
        return found

    return weights_of


def cut_evenly(weights_of: Callable[[np.ndarray], np.ndarray], count: int, most: int) -> np.ndarray:
    """Cuts 0 … count - 1 into the fewest runs of about equal weight of which none weighs more than `most`, to within
    its heaviest item. weights_of: items (n,) → int64 (n,), all positive. Returns the first item of each run, and
    `count`. weights_of is called by threads. Memory: 1/8 byte an item."""

    def sums_of_blocks(start: int) -> np.ndarray:
        each = weights_of(np.arange(start, min(start + _CHUNK, count)))
        return np.add.reduceat(each, np.arange(0, len(each), _BLOCK))

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # numpy lets go of the GIL
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
        # The item that the target falls into: the cut is at its beginning or its end, whichever is nearer.
        place = (before < target[:, None]).sum(axis=1) - 1
        row = np.arange(len(place))
        place = np.minimum(place, inside.sum(axis=1) - 1)
        into = target - before[row, place]
        cuts.append(items[row, place] + (2 * into > each[row, place]))
    return np.unique(np.append(np.concatenate(cuts), count))


def cut_groups(each: np.ndarray) -> np.ndarray:
    """(groups + 1,): where the row groups of a shard begin whose samples weigh `each`, and the number of samples."""
    per_row = each + GROUP_BYTES_PER_ROW
    return cut_evenly(lambda items: per_row[items], len(each), GROUP_BYTES)
