"""The section of a recipe that describes where its training runs."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from flows.recipe.part import Part, PositiveInt
from model.training.settings import PeakTflops


class Rendezvous(Part):
    """Where the ranks find each other: an address of the first host, at which its rank 0 listens."""

    host: Annotated[str, Field(pattern=r"^\w[\w.:-]*$")] | None = None
    """Address of the first host that the other hosts can reach; if unset, the first host's name in the hostfile."""

    port: Annotated[int, Field(gt=0, lt=65536)] | None = None
    """Port at which rank 0 listens; if unset, 29500 with a hostfile and any free port without one."""


SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "{host}")
# Variables that the launcher sets for every rank.
_TOLD = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "HONEYBEE_LIFELINE"}


class Launch(Part):
    """Processes of a training or evaluation job. With a hostfile, the stages train and models are evaluated on all of
    its hosts; everything else runs on the machine that launches. The working directory, store, data and Python
    environment must have the same paths on all hosts."""

    ranks: PositiveInt | None = None
    """Number of processes on this machine, one per GPU; 1 if unset. With a hostfile, its slots replace this key."""

    threads: PositiveInt | None = None
    """CPU threads of each rank; if unset, the machine's cores divided by its ranks."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the ranks; `auto` uses a GPU if there is one."""

    peak_tflops: PeakTflops | None = None
    """Peak dense throughput of one device in TFLOP/s, to report the MFU of a GPU that is not in the built-in list."""

    env: dict[Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")], Annotated[str, Field(coerce_numbers_to_str=True)]] = {}
    """Environment variables of every rank, such as `NCCL_SOCKET_IFNAME`."""

    hostfile: Path | None = None
    """File with one `host slots=N` line for each machine, in DeepSpeed's format."""

    rendezvous: Rendezvous = Rendezvous()
    """Address at which the ranks meet."""

    connect: tuple[str, ...] = SSH
    """Command that starts a program on `{host}`; the program and its arguments are appended to it."""

    python: str | None = None
    """Python interpreter on the hosts; if unset, the path of the one that runs `honeybee`."""

    @model_validator(mode="after")
    def _agrees(self) -> "Launch":
        told = sorted(_TOLD & set(self.env))
        if told:
            raise ValueError(f"env: {', '.join(told)} follow from ranks, hostfile and rendezvous: remove them")
        if self.hostfile is None:
            given = {
                "rendezvous.host": self.rendezvous.host is not None,
                "connect": self.connect != SSH,
                "python": self.python is not None,
            }
            wrong = [f"`{key}`" for key, is_given in given.items() if is_given]
            if wrong:
                raise ValueError(f"{' and '.join(wrong)} is for other machines: add `hostfile`, or remove it")
        elif self.ranks is not None:
            raise ValueError("the slots of `hostfile` set the number of ranks: remove `ranks`")
        if not any("{host}" in word for word in self.connect):
            raise ValueError("connect: the command must contain {host}, the placeholder for the host's name")
        return self
