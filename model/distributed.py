"""The ranks of a job: processes that torchrun's environment variables describe, or a single process."""

import json
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

# How long a rank waits for the others, e.g. while one writes a large checkpoint or decodes its first images.
TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class Ranks:
    """The identity of this process. `control` is a CPU process group for small values that must not wait for the
    device."""

    rank: int
    world: int
    device: torch.device
    control: dist.ProcessGroup | None  # None: a single process without a group

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, values: list[float]) -> list[float]:
        """Returns the sums of the values over all ranks, on each of them; exact for counts below 2^53."""
        if self.world == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, group=self.control)
        return tensor.tolist()

    def maximum(self, values: list[float]) -> list[float]:
        """Returns the maxima of the values over all ranks, on each of them."""
        if self.world == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self.control)
        return tensor.tolist()

    def gather(self, value: Any) -> list[Any]:
        """Returns the value of each rank, on all of them; values are transferred as JSON."""
        if self.world == 1:
            return [value]
        own = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        longest = int(self.maximum([len(own)])[0])
        padded = torch.nn.functional.pad(own, (0, longest - len(own)), value=ord(" "))
        everyone = [torch.empty_like(padded) for _ in range(self.world)]
        dist.all_gather(everyone, padded, group=self.control)
        return [json.loads(bytes(each.tolist())) for each in everyone]

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier(group=self.control)


def choose_device(device: str) -> str:
    """Returns `cpu` or `cuda` for auto (CUDA if available), cpu or cuda. Sets DS_ACCELERATOR for DeepSpeed, so call it
    before importing that. Raises RuntimeError if CUDA is requested but unavailable."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("device is cuda, but torch sees no CUDA device: set device to cpu or auto")
    os.environ["DS_ACCELERATOR"] = device
    return device


def init_ranks(device: str) -> Ranks:
    """Joins the process group of the ranks. Raises RuntimeError if they do not find each other within TIMEOUT."""
    device = choose_device(device)
    local_rank = int(os.environ.setdefault("LOCAL_RANK", "0"))
    rank, world = int(os.environ.setdefault("RANK", "0")), int(os.environ.setdefault("WORLD_SIZE", "1"))
    if device == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise RuntimeError(
                f"rank {rank} is process {local_rank + 1} on this host, which has {torch.cuda.device_count()} GPUs: "
                "lower launch.ranks, or the slots of the host in launch.hostfile"
            )
        torch.cuda.set_device(local_rank)
    backend = "nccl" if device == "cuda" else "gloo"
    if world == 1:  # a single process needs no port
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=TIMEOUT)
    else:
        dist.init_process_group(backend, timeout=TIMEOUT)
    control = dist.new_group(backend="gloo", timeout=TIMEOUT)
    return Ranks(rank, world, torch.device("cuda", local_rank) if device == "cuda" else torch.device("cpu"), control)


def alone(device: str) -> Ranks:
    """Returns the ranks of a single process, without a process group. Raises RuntimeError as choose_device does."""
    return Ranks(0, 1, torch.device(choose_device(device)), None)


def shutdown() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
