"""Detects steps whose loss jumps or is not finite before the optimiser's step, and reports them with their samples.

A loss is a spike if it exceeds the median of the last 50 losses by more than `spike_threshold` times the usual change.
The usual change is the median absolute difference of consecutive losses, which does not grow while the loss falls, but
at least 2 % of the median loss, since otherwise any change of a nearly constant loss would be a spike. Detection starts
after 20 steps. `work/spikes.jsonl` gets a line for each such step. All ranks judge the same number, and the history is
part of a checkpoint, so a stopped and resumed run decides like an uninterrupted one.
"""

import json
import logging
import math
import statistics
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from model.distributed import Ranks
from model.training.callback import Callback, StepLosses, StepReport
from model.training.settings import Train
from pipelines.core.files import complete_lines, write_atomic

log = logging.getLogger("honeybee.training")

WINDOW = 50  # steps whose losses define what is usual
MIN_LOSSES = 20  # steps with a finite loss before detection starts
MIN_CHANGE = 0.02  # as a fraction of the median loss
MAX_CONSECUTIVE_SKIPS = 10  # maximum number of consecutive skipped steps without a finite loss or gradient
SHOWN = 5  # samples listed in a message

Reason = Literal["spike", "loss not finite", "gradient not finite"]


class NonFiniteError(ArithmeticError):
    """Raised if a loss or gradient is not finite; the message names the step and its samples."""


@dataclass(frozen=True)
class Usual:
    """The usual loss before a step; the median is None while too few losses are known."""

    median: float | None
    limit: float = math.inf  # a loss above it is a spike


class LossSpikes(Callback):
    """Tracks the recent losses of a stage, skips steps as the job says, and stops a run that must not continue."""

    name = "spikes"

    def __init__(self, work: Path, train: Train, ranks: Ranks):
        self.path, self.train, self.ranks = work / "spikes.jsonl", train, ranks
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._not_finite = 0  # consecutive steps
        self._skipped_steps = 0  # of the steps reported; the loop counts all of them
        self._judged: tuple[Reason | None, Usual] = (None, Usual(None))  # the current step

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._losses.extend(state["losses"])
        self._not_finite, self._skipped_steps = state["not_finite"], state["skipped_steps"]

    def state_dict(self) -> dict[str, Any]:
        return {
            "losses": list(self._losses),
            "not_finite": self._not_finite,
            "skipped_steps": self._skipped_steps,
        }

    def on_start(self, step: int, steps: int) -> None:
        """Drops the reports of steps after `step`, which will be written again."""
        if self.ranks.first and self.path.is_file():
            kept = [line for line in complete_lines(self.path) if json.loads(line)["step"] <= step]
            write_atomic(self.path, "".join(kept))

    def before_optimizer_step(self, losses: StepLosses) -> bool:
        """Judges the loss, and returns whether the job wants to take such a step."""
        usual = self._usual()
        reason: Reason | None = None
        if not math.isfinite(losses.loss):
            reason = "loss not finite"
        else:
            self._losses.append(losses.loss)
            if losses.loss > usual.limit:
                reason = "spike"
        self._judged = reason, usual
        return reason is None or (reason == "spike" and self.train.on_spike == "report")

    def after_step(self, report: StepReport) -> None:
        """Reports a step with a spike or without a finite loss and gradient.

        Raises NonFiniteError, on every rank, if the run must not continue.
        """
        reason, usual = self._judged
        if reason != "loss not finite" and not math.isfinite(report.grad_norm):
            reason = "gradient not finite"
        self._not_finite = self._not_finite + 1 if reason and reason != "spike" else 0
        if reason is None:
            return
        samples = self._samples(report)
        ends = reason != "spike" and (self.train.on_nonfinite == "stop" or self._not_finite > MAX_CONSECUTIVE_SKIPS)
        skipped = not report.taken and not ends
        self._skipped_steps += skipped
        if self.ranks.first:
            record = {
                "step": report.step,
                "reason": reason,
                "loss": _number(report.loss),
                "usual_loss": usual.median,
                "grad_norm": _number(report.grad_norm),
                "skipped": skipped,
                "time": time.time(),
                "samples": [{**sample, "loss": _number(sample["loss"])} for sample in samples],
            }
            with self.path.open("a") as file:
                file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
        if ends:
            raise NonFiniteError(self._error(report.step, reason, samples))
        if self.ranks.first:
            done = "the step was skipped" if skipped else "the step was taken"
            usually = "not known yet" if usual.median is None else f"{usual.median:.4f}"
            log.warning(
                "step %d: %s: loss %.4f (usually %s), gradient norm %.3f; %s. Highest losses: %s. %s lists all samples",
                *(report.step, reason, report.loss, usually, report.grad_norm, done, _named(samples), self.path),
            )

    def _usual(self) -> Usual:
        if len(self._losses) < MIN_LOSSES:
            return Usual(None)
        median = statistics.median(self._losses)
        change = statistics.median(abs(after - before) for before, after in pairwise(self._losses))
        return Usual(median, median + self.train.spike_threshold * max(change, MIN_CHANGE * median))

    def _samples(self, report: StepReport) -> list[dict[str, Any]]:
        """Returns the samples of all ranks: those without a finite loss first, then by descending loss."""
        own = [
            {"sample": name, "loss": loss / max(tokens, 1), "supervised_tokens": tokens}
            for batch, of_batch in zip(report.batches, report.example_losses, strict=True)
            for name, tokens, loss in zip(batch.names, batch.supervised, of_batch, strict=True)
        ]
        everyone = [sample for of_rank in self.ranks.gather(own) for sample in of_rank]
        return sorted(everyone, key=lambda s: -s["loss"] if math.isfinite(s["loss"]) else -math.inf)

    def _error(self, step: int, reason: Reason, samples: list[dict[str, Any]]) -> str:
        remedy = "Lower learning_rate, set precision to fp32, or inspect these samples"
        if reason == "loss not finite":
            what = f"the loss is not finite in {_named([s for s in samples if not math.isfinite(s['loss'])])}"
        else:
            what = f"the gradient norm is not finite although all losses are; the step had {_named(samples)}"
        if self.train.on_nonfinite == "skip":
            what += (
                f" (the {MAX_CONSECUTIVE_SKIPS} steps before were skipped for the same reason; "
                "on_nonfinite: skip allows no more in a row)"
            )
        return f"step {step}: {what}. {remedy}; {self.path} lists all samples. The last checkpoint precedes this step"


def _named(samples: Sequence[dict[str, Any]]) -> str:
    shown = "; ".join(f"{sample['sample']}: {sample['loss']:.4f}" for sample in samples[:SHOWN])
    return shown + (f"; and {len(samples) - SHOWN} more" if len(samples) > SHOWN else "")


def _number(value: float) -> float | str:
    """Returns a JSON value: JSON has no infinity and no NaN, so these become strings."""
    return value if math.isfinite(value) else str(value)
