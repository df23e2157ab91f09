"""Writes the lines of metrics: metrics.jsonl, TensorBoard, and the log. All of it exists on the first rank only."""

import json
import logging
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from model.training.callback import Callback
from pipelines.core.files import complete_lines, write_atomic

log = logging.getLogger("honeybee.training")


def scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """Returns the numbers of a line of metrics by name; those by dataset or part become `loss/<dataset>` and
    `learning_rate/<part>`."""
    no_scalars = ("step", "steps", "losses", "learning_rates", "time")
    found = {key: value for key, value in line.items() if key not in no_scalars}
    found |= {f"loss/{name}": value for name, value in line.get("losses", {}).items()}
    return found | {f"learning_rate/{part}": value for part, value in line.get("learning_rates", {}).items()}


class MetricsFile(Callback):
    """Appends the lines to `work/metrics.jsonl`."""

    def __init__(self, work: Path):
        self.path = work / "metrics.jsonl"

    def on_start(self, step: int, steps: int) -> None:
        if self.path.is_file():
            kept = [line for line in complete_lines(self.path) if json.loads(line)["step"] <= step]
            write_atomic(self.path, "".join(kept))

    def on_metrics(self, line: Mapping[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


class TensorBoard(Callback):
    """Writes the scalars to `work/tensorboard`."""

    def __init__(self, work: Path):
        self.directory = work / "tensorboard"

    def on_start(self, step: int, steps: int) -> None:
        self._writer = SummaryWriter(str(self.directory), purge_step=step + 1)

    def on_metrics(self, line: Mapping[str, Any]) -> None:
        for name, value in scalars(line).items():
            self._writer.add_scalar(name, value, line["step"])
        self._writer.flush()

    def on_end(self) -> None:
        self._writer.close()


class ProgressLog(Callback):
    """Logs the most important metrics."""

    def on_metrics(self, line: Mapping[str, Any]) -> None:
        log.info(
            "step %d/%d  loss %.4f  learning rate %.2e  gradient norm %.3f  %.0f samples/s  %.0f tokens/s  %s left",
            line["step"],
            line["steps"],
            line["loss"],
            line["learning_rate"],
            line["grad_norm"],
            line["samples_per_second"],
            line["tokens_per_second"],
            timedelta(seconds=round(line["seconds_left"])),
        )
