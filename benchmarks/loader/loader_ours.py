"""This project's loader behind the interface of its peers (peers/common.py), in the project's environment."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.loader.peers.common import PACK_LENGTH, VISUAL_TOKENS, Batch, Setup, main, nothing, plain
from model.processing import HoneybeeImageProcessor
from model.training.data.collate import Collator
from model.training.data.decode import Decoder
from model.training.data.loader import Decode
from model.training.data.loader import Loader as OurLoader
from model.training.data.rank_assignment import PackAssignment
from model.training.data.shard_reader import Shards
from model.training.settings import Loading
from pipelines.packing.plan import Packing, make_plan


def decode_of(setup: Setup) -> Decode:
    processor = HoneybeeImageProcessor()
    if setup.decode in ("own", "fast"):
        return Decoder.like(processor, "exact" if setup.decode == "own" else "fast")
    turn = {"plain": plain, "none": nothing}[setup.decode]

    def decode(encoded: list[bytes]) -> tuple[Tensor, list[str | None]]:
        images = [turn(data) for data in encoded]
        return torch.stack(images) if images else torch.empty(0), [None] * len(encoded)

    return decode


class Loader:
    packs = True

    def __init__(self, setup: Setup):
        shards = Shards(Path(setup.data))
        packing = Packing(max_tokens=PACK_LENGTH) if setup.packing else None
        self.loader = OurLoader(
            shards,
            make_plan(shards.lengths, packing, VISUAL_TOKENS),
            PackAssignment(setup.global_batch, setup.batch, setup.rank, setup.ranks),
            Collator(shards.image_token_id, VISUAL_TOKENS, 0, 4096, shards.datasets),
            decode_of(setup),
            Loading(decode_threads=max(1, setup.workers)),
        )
        self.packing = setup.packing

    def __iter__(self) -> Iterator[Batch]:
        for step in self.loader:
            for batch in step:
                names = [int(name.split()[1]) for name in batch.names]
                if self.packing:  # example_ids are unique in a batch, of which a row is a pack
                    first = names
                    names = [[first[i] for i in row.unique_consecutive().tolist()] for row in batch.example_ids]
                yield names, batch.pixel_values, batch.input_ids

    def save(self, directory: Path) -> None:
        (directory / "state.json").write_text(json.dumps(self.loader.state_dict()))

    def load(self, directory: Path) -> None:
        self.loader.load_state_dict(json.loads((directory / "state.json").read_text()))


if __name__ == "__main__":
    main(sys.modules[__name__])
