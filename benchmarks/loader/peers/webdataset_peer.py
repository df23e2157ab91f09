"""webdataset: tars, shards split by node and worker, a shuffle buffer and RandomMix; without a state, users skip."""

import io
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import webdataset as wds

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
SHUFFLE = 1000  # samples, as in its documentation


def write(plain: Path, out: Path) -> None:
    for source, rows in by_source(plain):
        (out / source).mkdir(parents=True)
        for number, start in enumerate(range(0, len(rows), PER_SHARD)):
            with wds.TarWriter(str(out / source / f"{number:05d}.tar")) as tar:
                for name, data, ids in rows[start : start + PER_SHARD]:
                    array = io.BytesIO()
                    np.save(array, ids)
                    tar.write({"__key__": f"{name:08d}", "jpg": data, "npy": array.getvalue()})


class Loader:
    def __init__(self, setup: Setup):
        own = setup.decode == "own"
        turn = decoder(setup, lambda: torchvision_transforms(tensors=False))

        def sample(row: dict) -> tuple[int, torch.Tensor, np.ndarray]:
            ids = row["npy"] if own else np.load(io.BytesIO(row["npy"]))
            return int(row["__key__"]), turn(row["jpg"]), ids

        sources = []
        for source in SOURCES:
            files = sorted(str(path) for path in (Path(setup.data) / source).iterdir())
            data = wds.WebDataset(
                files, shardshuffle=len(files), seed=setup.seed, nodesplitter=wds.split_by_node, empty_check=False
            )
            data = data.repeat().shuffle(SHUFFLE, seed=setup.seed)
            sources.append((data.decode("pil") if own else data).map(sample))
        mixed = wds.RandomMix(sources, [setup.shares[source] for source in SOURCES])
        self.loader = wds.WebLoader(
            wds.DataPipeline(lambda: iter(mixed), wds.batched(setup.batch, collation_fn=collate)),
            batch_size=None,
            num_workers=setup.workers,
        )

    def __iter__(self) -> Iterator[Batch]:
        return itertools.chain(self.loader)


if __name__ == "__main__":
    main(sys.modules[__name__], resumable=False)
