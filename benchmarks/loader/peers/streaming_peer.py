"""mosaicml-streaming: MDS shards, streams with proportions, its deterministic shuffle and its state."""

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.loader.peers.common import (
    SOURCES,
    Batch,
    Setup,
    by_source,
    collate,
    decoder,
    import_torchvision,
    main,
    torchvision_transforms,
)

import_torchvision("torchvision")  # streaming imports it too, which fails otherwise
from streaming import MDSWriter, Stream, StreamingDataLoader, StreamingDataset  # noqa: E402

SHARD_BYTES = 18_000_000  # about 200 samples


def write(plain: Path, out: Path) -> None:
    with tempfile.NamedTemporaryFile(suffix=".jpg") as file:
        for kind in ("bytes", "jpeg"):  # bytes for the shared decode function, its jpeg type for its own
            columns = {"name": "int", "image": kind, "ids": "ndarray:int32"}
            for source, rows in by_source(plain):
                with MDSWriter(out=str(out / kind / source), columns=columns, size_limit=SHARD_BYTES) as writer:
                    for name, data, ids in rows:
                        Path(file.name).write_bytes(data)  # the jpeg type keeps the bytes of a file
                        image = data if kind == "bytes" else Image.open(file.name)
                        writer.write({"name": name, "image": image, "ids": ids})


class Decoded(StreamingDataset):
    turn = staticmethod(lambda image: image)

    def __getitem__(self, at: int) -> tuple[int, torch.Tensor, np.ndarray]:
        row = super().__getitem__(at)
        return row["name"], self.turn(row["image"]), row["ids"]


class Loader:
    def __init__(self, setup: Setup):
        root = Path(setup.data) / ("jpeg" if setup.decode == "own" else "bytes")
        streams = [Stream(local=str(root / source), proportion=setup.shares[source]) for source in SOURCES]
        data = Decoded(
            streams=streams,
            epoch_size=setup.samples,
            shuffle=True,
            shuffle_seed=setup.seed,
            batch_size=setup.batch,
        )
        data.turn = decoder(setup, lambda: torchvision_transforms(tensors=False))
        self.loader = StreamingDataLoader(data, batch_size=setup.batch, num_workers=setup.workers, collate_fn=collate)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.loader)

    def save(self, directory: Path) -> None:
        if os.environ.get("RANK", "0") == "0":  # it is the same on all ranks
            torch.save(self.loader.state_dict(), directory / "state.pt")

    def load(self, directory: Path) -> None:
        self.loader.load_state_dict(torch.load(directory / "state.pt", weights_only=False))


if __name__ == "__main__":
    main(sys.modules[__name__])
