"""Measures the progress of a stage: losses by dataset, learning rates, gradient norm and the remaining time."""

import math
import time
from collections.abc import Sequence
from typing import Any

from model.training.callback import Callback, Interval, StepReport
from model.training.settings import Train


class Progress(Callback):
    """Averages the losses over the steps since the last line of metrics.

    Its state is part of a checkpoint, so that a stopped and resumed run writes the same lines as an uninterrupted one:
    its losses are sums over all ranks, added in the order of the steps.
    """

    name = "metrics"

    def __init__(self, datasets: Sequence[str], train: Train):
        self.datasets = datasets
        scales = {part: train.rate_scale(part) for part in train.trains}
        self._rate_scales = scales if set(scales.values()) - {1.0} else {}
        self._reset()

    def _reset(self) -> None:
        self._losses = [0.0] * len(self.datasets)  # sums over supervised tokens
        self._supervised = [0.0] * len(self.datasets)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._losses, self._supervised = list(state["losses"]), list(state["supervised"])

    def state_dict(self) -> dict[str, Any]:
        return {"losses": self._losses, "supervised": self._supervised}

    def on_start(self, step: int, steps: int) -> None:
        self._first, self._steps, self._started = step, steps, time.perf_counter()

    def after_step(self, report: StepReport) -> None:
        if not math.isfinite(report.loss):  # otherwise the mean over the following steps would not be finite either
            return
        self._losses = [total + new for total, new in zip(self._losses, report.losses, strict=True)]
        self._supervised = [total + new for total, new in zip(self._supervised, report.supervised, strict=True)]

    def measure(self, interval: Interval) -> dict[str, Any]:
        last = interval.last
        seconds_per_step = (time.perf_counter() - self._started) / (last.step - self._first)
        found = {
            "seconds_left": seconds_per_step * (self._steps - last.step),
            "loss": _mean(sum(self._losses), sum(self._supervised)),
            "losses": {
                name: _mean(loss, count)
                for name, loss, count in zip(self.datasets, self._losses, self._supervised, strict=True)
                if count
            },
            "learning_rate": last.learning_rate,
            **self._rates(last.learning_rate),
            "grad_norm": last.grad_norm,
        }
        self._reset()
        return found

    def _rates(self, learning_rate: float) -> dict[str, Any]:
        """Returns the learning rate of each part, if any differs from that of the stage."""
        rates = {part: learning_rate * scale for part, scale in self._rate_scales.items()}
        return {"learning_rates": rates} if rates else {}


def _mean(total: float, count: float) -> float:
    return total / count if count else math.nan
