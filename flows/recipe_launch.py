"""The part of a recipe that says where its training runs."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from flows.recipe_part import Part, PositiveInt
from model.training.job import PeakTflops


class Rendezvous(Part):
    """Where the ranks find each other: an address of the first host, at which its rank 0 listens."""

    host: Annotated[str, Field(pattern=r"^\w[\w.:-]*$")] | None = None  # the first host's name where absent
    port: Annotated[int, Field(gt=0, lt=65536)] | None = None  # 29500 with a hostfile, else any that is free


SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "{host}")
# What the launcher itself tells a rank.
_TOLD = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "HONEYBEE_LIFELINE"}


class Launch(Part):
    """Processes of a training or evaluation job. With a hostfile the stages train, and models are evaluated, on all its
    hosts; all else runs on the machine that launches. Working directory, store, data and python have the same paths on
    all of them."""

    ranks: PositiveInt | None = None  # on this machine, 1 where absent; with a hostfile its slots say it
    threads: PositiveInt | None = None  # CPU threads of a rank; cores / ranks where absent
    device: Literal["auto", "cpu", "cuda"] = "auto"
    peak_tflops: PeakTflops | None = None  # of a GPU that model/training/flops.py does not know, for MFU
    env: dict[
        Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")], Annotated[str, Field(coerce_numbers_to_str=True)]
    ] = {}  # of every rank, e.g. NCCL_SOCKET_IFNAME
    hostfile: Path | None = None  # lines `host slots=N`, as DeepSpeed reads them
    rendezvous: Rendezvous = Rendezvous()
    connect: tuple[str, ...] = SSH  # the command that starts a program on `{host}`; the program follows it
    python: str | None = None  # the interpreter on the hosts; this one's path where absent

    @model_validator(mode="after")
    def _agrees(self) -> "Launch":
        told = sorted(_TOLD & set(self.env))
        if told:
            raise ValueError(f"env: {', '.join(told)} follow from ranks, hostfile and rendezvous: leave them out")
        if self.hostfile is None:
            given = {
                "rendezvous.host": self.rendezvous.host is not None,
                "connect": self.connect != SSH,
                "python": self.python is not None,
            }
            wrong = [f"`{key}`" for key, there in given.items() if there]
            if wrong:
                raise ValueError(f"{' and '.join(wrong)} is for other machines: give `hostfile`, or leave it out")
        elif self.ranks is not None:
            raise ValueError("the slots of `hostfile` say how many ranks there are: leave out `ranks`")
        if not any("{host}" in word for word in self.connect):
            raise ValueError("connect: no word says {host}, the place of the host's name")
        return self
