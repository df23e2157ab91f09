"""Reports the progress of training: metrics.jsonl, TensorBoard, Weights & Biases, and a log line."""

import json
import logging
import math
import resource
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from model.distributed import Ranks
from model.training.monitor.wandb_run import WandbRun
from model.training.settings import PartName
from pipelines.core.files import complete_lines, write_atomic

log = logging.getLogger("honeybee.training")


class Metrics:
    """Accumulates metrics over the steps since the last line of metrics.jsonl.

    Its `state` is part of a checkpoint, so that a stopped and resumed run writes the same lines as an uninterrupted
    one: its losses are sums over all ranks, added in the order of the steps.
    """

    def __init__(
        self,
        work: Path,
        datasets: Sequence[str],
        ranks: Ranks,
        steps: int,
        rate_scales: Mapping[PartName, float],
        peak: float | None = None,
        wandb: WandbRun | None = None,
    ):
        """steps: the number of steps of the stage, for the time estimate. rate_scales: the factor on the learning rate
        of each trained part. peak: the peak FLOPs per second of a rank's device, if known. wandb: also receives the
        scalars; only on the first rank."""
        self.peak, self.wandb = peak, wandb
        self.path, self.datasets, self.ranks, self.steps = work / "metrics.jsonl", datasets, ranks, steps
        self.rate_scales = rate_scales if set(rate_scales.values()) - {1.0} else {}
        self.losses = [0.0] * len(datasets)  # sums over supervised tokens
        self.supervised = [0.0] * len(datasets)
        self._writer: SummaryWriter | None = None
        self._flops: int | None = None
        self._tensorboard = work / "tensorboard"
        self._restart_clock()
        self.begun: tuple[float, int] | None = None  # when this process started training, and after how many steps

    def begin(self, step: int, state: dict[str, Any] | None) -> None:
        """Starts after `step` completed steps; drops the lines of later steps, which will be written again."""
        if state:
            self.losses, self.supervised = list(state["losses"]), list(state["supervised"])
        if self.ranks.first:
            if self.path.is_file():
                write_atomic(
                    self.path, "".join(line for line in complete_lines(self.path) if json.loads(line)["step"] <= step)
                )
            self._writer = SummaryWriter(str(self._tensorboard), purge_step=step + 1)
        self._restart_clock()
        self.begun = (time.perf_counter(), step)

    def leave_out(self, seconds: float) -> None:
        """Excludes time since the last line that was not spent on training, such as an evaluation."""
        self._since += seconds

    def state(self) -> dict[str, Any]:
        return {"losses": self.losses, "supervised": self.supervised}

    def add(
        self,
        losses: Sequence[float],
        supervised: Sequence[float],
        samples: int,
        tokens: int,
        positions: int,
        flops: int | None,
    ) -> None:
        """Adds a step. losses, supervised: by dataset, summed over all ranks; the others are of this rank only. flops:
        of the step, or None if the model is not covered by flops.py."""
        self.losses = [total + new for total, new in zip(self.losses, losses, strict=True)]
        self.supervised = [total + new for total, new in zip(self.supervised, supervised, strict=True)]
        self._supervised += sum(supervised)
        self._samples += samples
        self._tokens += tokens
        self._positions += positions
        self._flops = None if flops is None else (self._flops or 0) + flops

    def write(self, step: int, learning_rate: float, grad_norm: float, data_wait: float, **others: float) -> None:
        """Writes the line of a step and resets the sums. data_wait: seconds on this rank. others: additional metrics,
        written unchanged. All ranks must call it."""
        seconds = time.perf_counter() - self._since
        sums: list[float] = [self._samples, self._tokens, self._positions, self._flops or 0]
        samples, tokens, positions, flops = self.ranks.sum(sums)
        device_bytes = torch.cuda.max_memory_allocated() if self.ranks.device.type == "cuda" else 0
        host_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        wait, host, device = self.ranks.maximum([data_wait / seconds, host_bytes, device_bytes])
        if self.ranks.first:
            assert self.begun is not None, "begin first"
            since, first = self.begun
            line: dict[str, Any] = {
                "step": step,
                "steps": self.steps,
                "seconds_left": (time.perf_counter() - since) / (step - first) * (self.steps - step),
                "loss": _mean(sum(self.losses), sum(self.supervised)),
                "losses": {
                    name: _mean(loss, count)
                    for name, loss, count in zip(self.datasets, self.losses, self.supervised, strict=True)
                    if count
                },
                "learning_rate": learning_rate,
                **self._rates(learning_rate),
                "grad_norm": grad_norm,
                "samples_per_second": samples / seconds,
                "supervised_tokens_per_second": self._supervised / seconds,
                "tokens_per_second": tokens / seconds,
                **self._speed(flops / seconds),
                "padding_share": 1 - tokens / positions if positions else 0.0,
                "data_wait_share": wait,  # of the rank that waited longest
                "host_memory_bytes": int(host),  # peak, of the rank with the highest
                "device_memory_bytes": int(device),
                **others,
                "time": time.time(),
            }
            self._record(step, line)
        self.losses = [0.0] * len(self.datasets)
        self.supervised = [0.0] * len(self.datasets)
        self._restart_clock()

    def _rates(self, learning_rate: float) -> dict[str, Any]:
        """Returns the learning rate of each part, if any differs from that of the stage."""
        rates = {part: learning_rate * scale for part, scale in self.rate_scales.items()}
        return {"learning_rates": rates} if rates else {}

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        if self.wandb is not None:
            self.wandb.close()

    def _restart_clock(self) -> None:
        self._samples = self._tokens = self._positions = 0
        self._flops = None
        self._supervised = 0.0
        self._since = time.perf_counter()

    def _speed(self, flops_per_second: float) -> dict[str, float]:
        """flops_per_second: over all ranks."""
        if self._flops is None:
            return {}
        share = {} if self.peak is None else {"mfu": flops_per_second / (self.peak * self.ranks.world)}
        return {"flops_per_second": flops_per_second, **share}

    def _record(self, step: int, line: dict[str, Any]) -> None:
        assert self._writer is not None, "begin first"
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        no_scalars = ("step", "steps", "losses", "learning_rates", "time")
        scalars = {key: value for key, value in line.items() if key not in no_scalars}
        scalars |= {f"loss/{name}": value for name, value in line["losses"].items()}
        scalars |= {f"learning_rate/{part}": value for part, value in line.get("learning_rates", {}).items()}
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()
        if self.wandb is not None:
            self.wandb.log(scalars, step)
        log.info(
            "step %d/%d  loss %.4f  learning rate %.2e  gradient norm %.3f  %.0f samples/s  %.0f tokens/s  %s left",
            step,
            self.steps,
            line["loss"],
            line["learning_rate"],
            line["grad_norm"],
            line["samples_per_second"],
            line["tokens_per_second"],
            timedelta(seconds=round(line["seconds_left"])),
        )


def _mean(total: float, count: float) -> float:
    return total / count if count else math.nan
