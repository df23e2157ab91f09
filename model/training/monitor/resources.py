"""Measures how well the machines are used: padding, waiting for data, and memory."""

import resource

import torch

from model.distributed import Ranks
from model.training.callback import Callback, Interval, StepReport


class Resources(Callback):
    """Sums up padding over all ranks; takes waiting and memory from the rank with the most."""

    def __init__(self, ranks: Ranks):
        self.ranks = ranks
        self._reset()

    def _reset(self) -> None:
        self._tokens = self._positions = 0
        self._wait = 0.0

    def after_step(self, report: StepReport) -> None:
        self._tokens += sum(batch.num_tokens for batch in report.batches)
        self._positions += sum(batch.input_ids.numel() for batch in report.batches)
        self._wait += report.data_wait

    def measure(self, interval: Interval) -> dict[str, float]:
        tokens, positions = self.ranks.sum([self._tokens, self._positions])
        device_bytes = torch.cuda.max_memory_allocated() if self.ranks.device.type == "cuda" else 0
        host_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        wait, host, device = self.ranks.maximum([self._wait / interval.seconds, host_bytes, device_bytes])
        self._reset()
        return {
            "padding_share": 1 - tokens / positions if positions else 0.0,
            "data_wait_share": wait,
            "host_memory_bytes": int(host),  # peaks
            "device_memory_bytes": int(device),
        }
