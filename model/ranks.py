"""The processes of a job: one rank each, as the environment of torchrun says, or one process alone."""

import json
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

# A rank waits this long for the others, e.g. while one writes a large checkpoint or decodes its first images.
TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class Ranks:
    """Who this process is. `control` is a group on the CPU for small facts that must not wait for the device."""

    rank: int
    world: int
    device: torch.device
    control: dist.ProcessGroup | None  # None: alone

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, values: list[float]) -> list[float]:
        """Sums of the values over all ranks, the same on each; exact for counts below 2^53."""
        if self.world == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, group=self.control)
        return tensor.tolist()

    def maximum(self, values: list[float]) -> list[float]:
        if self.world == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self.control)
        return tensor.tolist()

    def gather(self, value: Any) -> list[Any]:
        """The value of each rank, as JSON brings it over."""
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
    """`cpu` or `cuda`, from auto (CUDA where there is one), cpu or cuda; DeepSpeed is told, so call it before its
    import. Raises RuntimeError when CUDA is asked for and absent."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("device is cuda, but torch sees no CUDA device: set device to cpu or auto")
    os.environ["DS_ACCELERATOR"] = device
    return device


def join(device: str) -> Ranks:
    """Joins the other ranks. Raises RuntimeError when they do not find each other in TIMEOUT."""
    device = choose_device(device)
    local_rank = int(os.environ.setdefault("LOCAL_RANK", "0"))
    rank, world = int(os.environ.setdefault("RANK", "0")), int(os.environ.setdefault("WORLD_SIZE", "1"))
    if device == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise RuntimeError(
                f"rank {rank} is number {local_rank + 1} of this machine, which has {torch.cuda.device_count()} GPUs: "
                "lower launch.ranks, or its slots in launch.hostfile"
            )
        torch.cuda.set_device(local_rank)
    backend = "nccl" if device == "cuda" else "gloo"
    if world == 1:  # alone: no port is needed
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=TIMEOUT)
    else:
        dist.init_process_group(backend, timeout=TIMEOUT)
    control = dist.new_group(backend="gloo", timeout=TIMEOUT)
    return Ranks(rank, world, torch.device("cuda", local_rank) if device == "cuda" else torch.device("cpu"), control)


def alone(device: str) -> Ranks:
    """This process by itself, without a process group. Raises RuntimeError as choose_device does."""
    return Ranks(0, 1, torch.device(choose_device(device)), None)


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
