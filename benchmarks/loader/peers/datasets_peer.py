"""datasets: streamed Parquet, interleave_datasets, a shuffle buffer, the state of torchdata's StatefulDataLoader."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets.distributed import split_dataset_by_node
from torchdata.stateful_dataloader import StatefulDataLoader

from benchmarks.loader.peers.common import (
    SOURCES,
    Batch,
    Setup,
    by_source,
    collate,
    decoder,
    main,
    torchvision_transforms,
)

PER_SHARD = 200
ROWS_PER_GROUP = 100
SHUFFLE = 1000  # samples of all sources: its default


def write(plain: Path, out: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("name", pa.int64()), ("image", image), ("ids", pa.list_(pa.int32()))])
    for source, rows in by_source(plain):
        (out / source).mkdir(parents=True)
        for number, start in enumerate(range(0, len(rows), PER_SHARD)):
            part = [
                {"name": name, "image": {"bytes": data, "path": None}, "ids": ids}
                for name, data, ids in rows[start : start + PER_SHARD]
            ]
            table = pa.Table.from_pylist(part, schema)
            pq.write_table(table, out / source / f"{number:05d}.parquet", row_group_size=ROWS_PER_GROUP)


class Loader:
    def __init__(self, setup: Setup):
        own = setup.decode == "own"
        turn = decoder(setup, lambda: torchvision_transforms(tensors=False))

        def sample(row: dict[str, Any]) -> dict[str, Any]:
            image = turn(row["image"] if own else row["image"]["bytes"])
            return {"name": row["name"], "image": image, "ids": np.array(row["ids"], np.int32)}

        sources = []
        for source in SOURCES:
            files = sorted(str(path) for path in (Path(setup.data) / source).iterdir())
            data = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
            data = data.cast_column("image", datasets.Image(decode=own))
            # Shuffled before mixing: a shuffled mixture cannot be resumed with workers (IndexError).
            sources.append(data.shuffle(seed=setup.seed, buffer_size=int(SHUFFLE * setup.shares[source])))
        shares = [setup.shares[source] for source in SOURCES]
        mixed = datasets.interleave_datasets(sources, probabilities=shares, seed=setup.seed)
        mixed = split_dataset_by_node(mixed, rank=setup.rank, world_size=setup.ranks).map(sample)
        self.loader = StatefulDataLoader(
            mixed,
            batch_size=setup.batch,
            num_workers=setup.workers,
            collate_fn=lambda rows: collate([(row["name"], row["image"], row["ids"]) for row in rows]),
        )

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.loader)

    def save(self, directory: Path) -> None:
        torch.save(self.loader.state_dict(), directory / f"{self._rank}.pt")

    def load(self, directory: Path) -> None:
        states = sorted(directory.iterdir())
        ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        if len(states) != ranks:
            raise SystemExit("not offered: each rank has its own state")
        self.loader.load_state_dict(torch.load(directory / f"{self._rank}.pt", weights_only=False))

    @property
    def _rank(self) -> int:
        return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


if __name__ == "__main__":
    datasets.disable_progress_bars()
    main(sys.modules[__name__])
