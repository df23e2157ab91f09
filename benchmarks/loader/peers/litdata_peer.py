"""litdata: chunks, CombinedStreamingDataset, StreamingDataLoader with its state."""

import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.loader.peers.common import Batch, Setup, by_source, collate, decoder, main, torchvision_transforms

os.environ["LITDATA_DISABLE_VERSION_CHECK"] = "1"
import litdata
from litdata.streaming import serializers
from litdata.streaming.cache import Cache

PER_SHARD = 200


def decode_by_pillow(data: bytes) -> torch.Tensor:
    """Replaces torchvision.io.decode_jpeg, which does not load next to a CPU torch; returns uint8 (3, H, W)."""
    return torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB"))).permute(2, 0, 1)


serializers._decode_image_tensor = decode_by_pillow


def write(plain: Path, out: Path) -> None:
    for encoded in (True, False):  # bytes for the shared decode function, its jpeg type for its own
        for source, rows in by_source(plain):
            directory = out / ("bytes" if encoded else "jpeg") / source
            directory.mkdir(parents=True)
            cache = Cache(str(directory), chunk_size=PER_SHARD)
            for index, (name, data, ids) in enumerate(rows):
                cache[index] = {"name": name, "image": data if encoded else litdata.Jpeg(bytes=data), "ids": ids}
            cache.done()
            cache.merge()


class Loader:
    def __init__(self, setup: Setup):
        turn = decoder(setup, lambda: torchvision_transforms(tensors=True))

        def sample(row: dict[str, Any]) -> tuple[int, torch.Tensor, np.ndarray]:
            return row["name"], turn(row["image"]), row["ids"]

        root = Path(setup.data) / ("jpeg" if setup.decode == "own" else "bytes")
        # drop_last: the default with several ranks; a resume needs the same value
        options = {"shuffle": True, "drop_last": True, "seed": setup.seed, "transform": sample}
        sources = [litdata.StreamingDataset(str(root / source), **options) for source in setup.shares]
        shares = list(setup.shares.values())
        mixed = litdata.CombinedStreamingDataset(sources, seed=setup.seed, weights=shares, iterate_over_all=False)
        data = mixed if len(sources) > 1 else sources[0]
        self.loader = litdata.StreamingDataLoader(
            data, batch_size=setup.batch, num_workers=setup.workers, collate_fn=collate
        )

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.loader)

    def save(self, directory: Path) -> None:
        torch.save(self.loader.state_dict(), directory / f"{os.environ.get('RANK', '0')}.pt")

    def load(self, directory: Path) -> None:
        # One state for all ranks: what a rank counts is the same on all of them.
        self.loader.load_state_dict(torch.load(directory / "0.pt", weights_only=False))


if __name__ == "__main__":
    main(sys.modules[__name__])
