"""The interface that every loader has here: `python -m PEER COMMAND SETUP`, in the peer's own environment.

A peer's module defines `write(plain, out)`, which writes the same samples in its format, and `Loader(setup)`:

    iterate   batches of samples: (identities, images (B, 3, 224, 224) fp32, token ids (B, T) int64); does not end
              before the epoch of its rank
    state     `save(directory)` after any batch, `load(directory)` before the first; for a library without a state,
              `resumable` is False, and the batches that were already taken are built again and discarded
    packing   `packs = True` if the library packs: then batches consist of packs, and identities are lists of lists

This module uses only the standard library, numpy, torch and Pillow, which all environments have in the same versions.
"""

import importlib
import io
import itertools
import json
import os
import random
import sys
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

SIDE = 224  # pixels
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)[:, None, None] * 255
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)[:, None, None] * 255
SOURCES = ("vqa", "captions", "chat")
VISUAL_TOKENS = 144  # of an image, in a pack
PACK_LENGTH = 1024  # tokens

Batch = tuple[list[Any], torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Setup:
    data: str  # the peer's format of the data
    shares: dict[str, float]
    samples: int  # of an epoch, over all ranks
    batch: int  # samples of one batch of one rank; with packing in the library, packs
    workers: int
    decode: str  # plain: as below; own: as in the library's documentation; none: images are empty
    global_batch: int  # samples or packs of a step, over all ranks
    packing: bool = False
    seed: int = 20

    @property
    def rank(self) -> int:
        return int(os.environ.get("RANK", "0"))

    @property
    def ranks(self) -> int:
        return int(os.environ.get("WORLD_SIZE", "1"))


def plain(data: bytes) -> torch.Tensor:
    """The decode function that all loaders share: (3, S, S)."""
    image = Image.open(io.BytesIO(data)).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    pixels = np.asarray(image, dtype=np.float32).transpose(2, 0, 1)
    return torch.from_numpy((pixels - MEAN) / STD)


def nothing(data: bytes) -> torch.Tensor:
    return torch.empty(0)


def import_torchvision(module: str) -> Any:
    """Imports torchvision next to a CPU build of torch.

    PyPI's torchvision is built for CUDA: its operators (nms, …) and its JPEG decoder do not load, but its transforms,
    which are functions of Pillow and torch, do.
    """
    registered = torch.library.register_fake
    torch.library.register_fake = lambda *args, **options: lambda function: function  # type: ignore[assignment]
    try:
        return importlib.import_module(module)
    finally:
        torch.library.register_fake = registered


def torchvision_transforms(tensors: bool) -> Callable[[Any], torch.Tensor]:
    """torchvision's transforms as in the libraries' documentation, of Pillow images or of tensors (C, H, W)."""
    transforms = import_torchvision("torchvision.transforms.v2" if tensors else "torchvision.transforms")
    mean, std = (MEAN / 255).ravel().tolist(), (STD / 255).ravel().tolist()
    resize = transforms.Resize((SIDE, SIDE), interpolation=transforms.InterpolationMode.BICUBIC)
    if tensors:
        scale = transforms.ToDtype(torch.float32, scale=True)
        return transforms.Compose([resize, scale, transforms.Normalize(mean, std)])
    return transforms.Compose(
        [lambda image: image.convert("RGB"), resize, transforms.ToTensor(), transforms.Normalize(mean, std)]
    )


def decoder(setup: Setup, own: Callable[[], Callable[[Any], torch.Tensor]]) -> Callable[[Any], torch.Tensor]:
    return {"plain": lambda: plain, "none": lambda: nothing, "own": own}[setup.decode]()


def collate(samples: Sequence[tuple[int, torch.Tensor, Any]]) -> Batch:
    """(identity, image, ids) of each sample → a batch, with ids padded with 0 on the right."""
    names, images, ids = zip(*samples, strict=True)
    tensors = [torch.as_tensor(np.asarray(each, dtype=np.int64)) for each in ids]
    padded = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)
    return [int(name) for name in names], torch.stack(images), padded


def read_plain(plain: Path) -> Iterator[tuple[str, int, bytes, np.ndarray]]:
    """Source, identity, encoded image and int32 ids of each sample."""
    with (plain / "samples.jsonl").open() as file:
        for line in file:
            row = json.loads(line)
            identity = SOURCES.index(row["source"]) * 1_000_000 + row["number"]
            data = (plain / "images" / row["image"]).read_bytes()
            yield row["source"], identity, data, np.array(row["ids"], np.int32)


def by_source(plain: Path) -> Iterator[tuple[str, list[tuple[int, bytes, np.ndarray]]]]:
    for source, rows in itertools.groupby(read_plain(plain), key=lambda row: row[0]):
        yield source, [row[1:] for row in rows]


def greedy(batches: Iterator[Batch]) -> Iterator[list[list[int]]]:
    """The usual wrapper around a loader without packing: adds samples to the open pack until one does not fit.

    Only identities are kept.
    """
    pack: list[int] = []
    free = PACK_LENGTH
    for names, _, ids in batches:
        for name, row in zip(names, ids, strict=True):
            length = int((row != 0).sum()) + VISUAL_TOKENS - 1
            if length > free:
                yield [pack]
                pack, free = [], PACK_LENGTH
            pack.append(name)
            free -= length


class Units:
    """What a rank trains on, in order: samples as lists of one identity, or packs."""

    def __init__(self, loader: Any, setup: Setup, skip: int):
        self.loader, self.setup = loader, setup
        self.batches = iter(loader)
        self._pending: list[list[int]] = []
        if setup.packing and not getattr(loader, "packs", False):
            self._source: Iterator[list[Any]] = greedy(self.batches)
        else:
            self._source = (names for names, _, _ in self.batches)
        if skip:
            self.take(skip)

    def take(self, count: int) -> list[list[int]]:
        """The next `count` units, fewer at the end."""
        while len(self._pending) < count:
            names = next(self._source, None)
            if names is None:
                break
            self._pending += [name if isinstance(name, list) else [name] for name in names]
        taken, self._pending = self._pending[:count], self._pending[count:]
        return taken


def main(peer: types.ModuleType, resumable: bool = True) -> None:
    command, *arguments = sys.argv[1:]
    if command == "write":
        plain, out = map(Path, arguments)
        peer.write(plain, out)
        return
    setup = Setup(**json.loads(arguments[0]))
    random.seed(setup.seed)
    np.random.seed(setup.seed)
    torch.manual_seed(setup.seed)
    torch.set_num_threads(1 if setup.workers else 2)
    if setup.ranks > 1:
        torch.distributed.init_process_group("gloo")
    if command == "epoch":
        print(json.dumps(epoch(peer, setup)))
    elif command == "resume":
        print(json.dumps(resume(peer, setup, Path(arguments[1]), int(arguments[2]), resumable)))
    else:
        trace(peer, setup, resumable, **json.loads(arguments[1]))
    sys.stdout.flush()
    # The workers and threads of some loaders do not end while their iterator is in use.
    os._exit(0)


def epoch(peer: Any, setup: Setup) -> dict[str, float]:
    begin = time.perf_counter()
    loader = peer.Loader(setup)
    batches = iter(loader)
    first = check(next(batches), setup)
    got, cpu = time.perf_counter(), cpu_seconds()
    seen = first
    while seen < setup.samples // setup.ranks:
        seen += check(next(batches), setup)
    took, cpu = time.perf_counter() - got, cpu_seconds() - cpu
    return {"first": got - begin, "rate": (seen - first) / took, "cpu": cpu / (seen - first)}


def cpu_seconds() -> float:
    """CPU time of this process and of its running descendants."""
    below = {os.getpid()}
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended
        found[int(path.parent.name)] = int(fields[1]), int(fields[11]) + int(fields[12])
    while more := {pid for pid, (parent, _) in found.items() if parent in below} - below:
        below |= more
    return sum(found[pid][1] for pid in below) / os.sysconf("SC_CLK_TCK")


def resume(peer: Any, setup: Setup, state: Path, batches: int, resumable: bool) -> dict[str, float]:
    begin = time.perf_counter()
    loader = peer.Loader(setup)
    if resumable:
        loader.load(state)
    iterator = iter(loader)
    for _ in range(0 if resumable else batches):
        next(iterator)
    check(next(iterator), setup)
    return {"resume": time.perf_counter() - begin}


def check(batch: Batch, setup: Setup) -> int:
    _, images, ids = batch
    assert images.shape[1:] == (3, SIDE, SIDE) and images.dtype == torch.float32, (images.shape, images.dtype)
    assert ids.dtype == torch.int64 and images.isfinite().all()
    return len(images)


def trace(
    peer: Any,
    setup: Setup,
    resumable: bool,
    out: str,
    units: int,
    load: str | None = None,
    saves: Mapping[str, int] | None = None,
    skip: int = 0,
) -> None:
    """Writes the identities of up to `units` units of this rank.

    load: a state to start from; skip: the number of units to discard first if there is no state; saves: directory →
    number of units after which a state is saved there.
    """
    loader = peer.Loader(setup)
    if load and resumable:
        loader.load(Path(load))
    taken = Units(loader, setup, 0 if resumable else skip)
    got: list[list[int]] = []
    for directory, after in (saves or {}).items():
        got += taken.take(after - len(got))
        if resumable:
            Path(directory).mkdir(parents=True, exist_ok=True)
            loader.save(Path(directory))
    got += taken.take(units - len(got))
    Path(f"{out}.{setup.rank}").write_text(json.dumps(got))
    if setup.ranks > 1:
        torch.distributed.barrier()
