"""Measures how fast all ranks train: samples, tokens and FLOPs per second, and model FLOPs utilisation (MFU)."""

import math

from model.distributed import Ranks
from model.training.callback import Callback, Interval, StepReport
from model.training.monitor.flops import Flops


class Throughput(Callback):
    """Counts samples and tokens."""

    def __init__(self, ranks: Ranks):
        self.ranks = ranks
        self._reset()

    def _reset(self) -> None:
        self._samples = self._tokens = 0  # of this rank
        self._supervised = 0.0  # of all ranks

    def after_step(self, report: StepReport) -> None:
        self._samples += sum(len(batch.names) for batch in report.batches)
        self._tokens += sum(batch.num_tokens for batch in report.batches)
        if math.isfinite(report.loss):
            self._supervised += sum(report.supervised)

    def measure(self, interval: Interval) -> dict[str, float]:
        samples, tokens = self.ranks.sum([self._samples, self._tokens])
        found = {
            "samples_per_second": samples / interval.seconds,
            "supervised_tokens_per_second": self._supervised / interval.seconds,
            "tokens_per_second": tokens / interval.seconds,
        }
        self._reset()
        return found


class FlopsRate(Callback):
    """Counts the FLOPs that the model needs."""

    def __init__(self, flops: Flops, peak: float | None, ranks: Ranks):
        """peak: the peak FLOPs per second of a rank's device; None if unknown, then there is no MFU."""
        self.flops, self.peak, self.ranks = flops, peak, ranks
        self._flops = 0  # of this rank

    def after_step(self, report: StepReport) -> None:
        self._flops += sum(self.flops.of(b.lengths, sum(b.supervised), len(b.pixel_values)) for b in report.batches)

    def measure(self, interval: Interval) -> dict[str, float]:
        rate = self.ranks.sum([self._flops])[0] / interval.seconds
        self._flops = 0
        return {"flops_per_second": rate} | (
            {} if self.peak is None else {"mfu": rate / (self.peak * self.ranks.world)}
        )
