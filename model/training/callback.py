"""The interface between the loop of a stage and what watches it: metrics, loss spikes, evaluation, own monitors.

A monitor is a subclass of Callback that overrides the hooks it needs. `callbacks.py` chooses those of a job; the loop
calls the hooks of all of them, in the order of the list, and knows nothing else about them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:  # it imports torch, which takes seconds; some who check a recipe import callbacks
    from model.training.data.collate import Batch


@dataclass(frozen=True)
class StepLosses:
    """What is known of a step after its backward passes and before the optimiser's step.

    Only `batches` and `example_losses` differ between ranks: they cover this rank's forward passes, the latter with the
    loss of each example summed over its supervised tokens.
    """

    step: int  # counted from 1
    batches: "Sequence[Batch]"
    example_losses: Sequence[Sequence[float]]
    loss: float  # mean over all supervised tokens of the step
    losses: Sequence[float]  # by dataset, in the order of the shards: sums over supervised tokens
    supervised: Sequence[float]  # by dataset: numbers of supervised tokens


@dataclass(frozen=True)
class StepReport(StepLosses):
    """A completed step."""

    learning_rate: float
    grad_norm: float  # before clipping
    taken: bool  # whether the optimiser changed the weights
    data_wait: float  # seconds that this rank waited for its batches


@dataclass(frozen=True)
class Interval:
    """The steps since the previous line of metrics. last: the last of them. seconds: the time that this rank spent on
    them, without evaluations."""

    last: StepReport
    seconds: float


class Callback:
    """Watches the training of a stage. Every hook has a default that does nothing.

    Every rank calls each hook at the same point, except for on_metrics, so hooks may communicate between ranks. A
    callback that does not communicate, such as a writer of files, may exist on the first rank only. Skipping steps and
    evaluating must be decided identically on all ranks. An exception ends the run without saving a checkpoint; raise it
    on every rank.

    name: the key of its state in a checkpoint; by default the name of the class. No two callbacks may share one.
    """

    name: ClassVar[str]

    def __init_subclass__(cls) -> None:
        cls.name = vars(cls).get("name", cls.__name__)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores state_dict(). Called on every rank before on_start, if the checkpoint has a state of this name."""

    def on_start(self, step: int, steps: int) -> None:
        """Called on every rank before the first step of this process, when `step` of `steps` steps are complete.

        After a resume, outputs that were written for later steps should be removed, since those steps run again.
        """

    def before_optimizer_step(self, losses: StepLosses) -> bool:
        """Returns whether the optimiser may take the step. Called on every rank after the backward passes.

        The step is skipped if any callback returns False: weights and optimiser state stay unchanged, and the step
        still counts. All callbacks are called in any case.
        """
        return True

    def after_step(self, report: StepReport) -> None:
        """Called on every rank after each step, in the order of the steps, whether it was taken or skipped."""

    def evaluate(self, step: int) -> Mapping[str, float] | None:
        """Returns scores if an evaluation is due after `step` steps, else None. Called on every rank after after_step.

        Scores cause a line of metrics at this step and are added to it. Those of the first rank count; the other ranks
        may return {}. The time of an evaluation does not count as training time.
        """
        return None

    def measure(self, interval: Interval) -> Mapping[str, Any]:
        """Returns metrics of an interval, and starts the next one. Called on every rank when a line of metrics is due:
        every `log_every` steps, after the last step and after an evaluation. Those of the first rank count."""
        return {}

    def on_metrics(self, line: Mapping[str, Any]) -> None:
        """Called on the first rank only, with the complete line of metrics of all callbacks."""

    def state_dict(self) -> dict[str, Any]:
        """Returns the state for a checkpoint as JSON, or {} to save none. Called on every rank before the checkpoint is
        written; the state of the first rank is saved and restored on all of them."""
        return {}

    def on_checkpoint(self, step: int) -> None:
        """Called on every rank after the checkpoint of `step` has been written."""

    def on_end(self) -> None:
        """Called on every rank after the last step, or after the checkpoint of a run that was told to stop. Not called
        after an error."""
