"""megatron-energon: tars with its index, a blend, its shuffle buffer, its packing, its savable loader."""

import importlib
import io
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron import energon
from megatron.energon.epathlib import EPath
from megatron.energon.task_encoder.cooking import Cooker, basic_sample_keys

from benchmarks.loader.peers.common import (
    PACK_LENGTH,
    SOURCES,
    VISUAL_TOKENS,
    Batch,
    Setup,
    collate,
    decoder,
    main,
    torchvision_transforms,
)

SHUFFLE = 100  # samples, as in its documentation
PACKING_BUFFER = 100


def write(plain: Path, out: Path) -> None:
    """Writes tars as webdataset does, and an index."""
    from benchmarks.loader.peers import webdataset_peer

    webdataset_peer.write(plain, out)
    command = str(Path(sys.executable).with_name("energon"))
    for source in SOURCES:
        options = ["--non-interactive", "--split-ratio", "1,0,0", "--sample-type", "CrudeWebdataset"]
        subprocess.run([command, "prepare", *options, str(out / source)], check=True)


@energon.edataclass
class Row(energon.Sample):
    name: Any  # of a sample; for a pack, the list of its samples' names
    image: Any
    ids: Any


@energon.edataclass
class Rows(energon.Batch):
    names: list
    images: torch.Tensor
    ids: torch.Tensor


@energon.stateless
def cook(sample: dict) -> Row:
    ids = sample["npy"] if isinstance(sample["npy"], np.ndarray) else np.load(io.BytesIO(bytes(sample["npy"])))
    name = int(str(sample["__key__"]).rsplit("/", 1)[-1])
    return Row(**basic_sample_keys(sample), name=name, image=sample["jpg"], ids=ids)


class Encoder(energon.DefaultTaskEncoder):
    cookers = [Cooker(cook)]
    decoder = None
    turn: Any = None

    @energon.stateless
    def encode_sample(self, sample: Row) -> Row:
        return Row.derive_from(sample, name=sample.name, image=self.turn(sample.image), ids=sample.ids)

    def select_samples_to_pack(self, samples: list[Row]) -> list[list[Row]]:
        """First fit, longest first."""
        packs: list[list[Row]] = []
        free: list[int] = []
        for sample in sorted(samples, key=lambda each: -len(each.ids)):
            length = len(sample.ids) + VISUAL_TOKENS - 1
            index = next((k for k, room in enumerate(free) if room >= length), len(packs))
            if index == len(packs):
                packs.append([])
                free.append(PACK_LENGTH)
            packs[index].append(sample)
            free[index] -= length
        return packs

    @energon.stateless
    def pack_selected_samples(self, samples: list[Row]) -> Row:
        return Row(
            __key__=",".join(each.__key__ for each in samples),
            __restore_key__=(),
            name=[each.name for each in samples],
            image=torch.stack([each.image for each in samples]),
            ids=np.concatenate([each.ids for each in samples]),
        )

    def batch(self, samples: list[Row]) -> Rows:
        packed = isinstance(samples[0].name, list)
        images = [torch.empty(0) if packed else each.image for each in samples]
        numbers = [0 if packed else each.name for each in samples]
        names, stacked, ids = collate(list(zip(numbers, images, (each.ids for each in samples), strict=True)))
        if packed:
            names, stacked = [each.name for each in samples], torch.cat([each.image for each in samples])
        return Rows.from_samples(samples, names=names, images=stacked, ids=ids)


class OwnEncoder(Encoder):
    decoder = energon.SampleDecoder()  # torchrgb


class Loader:
    packs = True

    def __init__(self, setup: Setup):
        encoder = OwnEncoder() if setup.decode == "own" else Encoder()
        encoder.turn = decoder(setup, lambda: torchvision_transforms(tensors=True))
        if setup.decode == "none":
            encoder.turn = lambda data: torch.empty(0)
        blend = "".join(
            f"      - {{weight: {setup.shares[source]}, path: {setup.data}/{source}}}\n" for source in SOURCES
        )
        head = "__module__: megatron.energon\n__class__: MetadatasetV2\nsplits:\n  train:\n    blend:\n"
        recipe = Path(setup.data) / f"blend-{setup.rank}.yaml"
        recipe.write_text(head + blend)
        workers = energon.WorkerConfig(rank=setup.rank, world_size=setup.ranks, num_workers=setup.workers)
        dataset = energon.get_train_dataset(
            str(recipe),
            worker_config=workers,
            batch_size=setup.batch,
            shuffle_buffer_size=SHUFFLE,
            max_samples_per_sequence=SHUFFLE,
            packing_buffer_size=PACKING_BUFFER if setup.packing else None,
            task_encoder=encoder,
        )
        self.setup = setup
        self.loader = energon.get_savable_loader(dataset)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.loader:
            yield batch.names, batch.images, batch.ids

    def save(self, directory: Path) -> None:
        torch.save(self.loader.save_state_rank(), directory / f"state_{self.setup.rank}.pt")

    def load(self, directory: Path) -> None:
        files = sorted(directory.glob("state_*.pt"))
        if len(files) != self.setup.ranks:
            changed = directory / f"for-{self.setup.ranks}-{self.setup.rank}"
            redistribute(files, self.setup.ranks, changed)
            files = sorted(changed.iterdir())
        self.loader.restore_state_rank(torch.load(files[self.setup.rank], weights_only=False))


def redistribute(files: list[Path], ranks: int, out: Path) -> None:
    """Writes states for another number of ranks, as `energon checkpoint redist` does.

    The released command refuses the checkpoint of a single rank, since it finds the counter in file names by comparing
    them; that check is replaced.
    """
    tool: Any = importlib.import_module("megatron.energon.tools.checkpoint")
    tool.detect_and_replicate_pattern = lambda names: lambda number: f"state_{number}.pt"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    tool.command_redist.callback(
        input_files=[EPath(str(file)) for file in files], output_path=EPath(str(out)), new_world_size=ranks
    )


if __name__ == "__main__":
    main(sys.modules[__name__])
