"""The loop over the steps of one stage. What watches the steps is behind the interface of callback.py."""

import contextlib
import logging
import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from model.training.callback import Callback, Interval, StepLosses, StepReport
from model.training.data.collate import IGNORE_INDEX, Batch
from model.training.data.loader import Loader
from model.training.data.shard_reader import DataError
from model.training.engine.checkpoint import RESERVED, Checkpoints
from model.training.engine.deepspeed_engine import Engine
from model.training.engine.optimizer import learning_rate
from model.training.engine.packed_attention import Examples
from model.training.job import Job
from model.training.signals import StopRequest
from pipelines.core.store import fingerprint

log = logging.getLogger("honeybee.training")


class Loop:
    """The training loop of a stage."""

    def __init__(
        self,
        job: Job,
        steps: int,
        engine: Engine,
        loader: Loader,
        checkpoints: Checkpoints,
        callbacks: Sequence[Callback],
    ):
        """callbacks: called in this order. Raises ValueError if two have the same name, or one that is taken."""
        self.job, self.steps, self.engine, self.loader = job, steps, engine, loader
        self.checkpoints, self.callbacks, self.ranks = checkpoints, callbacks, engine.ranks
        self.bad_samples = self.skipped_steps = 0
        names = [*RESERVED, *self._state(), *(callback.name for callback in callbacks)]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(
                f"callbacks: {', '.join(repeated)} is already a key of a checkpoint: choose another `name`"
            )

    def train(self) -> bool:
        """Trains the remaining steps. Returns False if it was told to stop before the last and saved a checkpoint."""
        with StopRequest() as stop:
            return self._train(stop)

    def _train(self, stop: StopRequest) -> bool:
        train = self.job.train
        done = self.start()
        stopping = False
        with contextlib.closing(iter(self.loader)) as steps:
            while done < self.steps and not stopping:
                stopping = self.step(done, next(steps), stop)
                done += 1
                if done % train.save_every == 0 or done == self.steps or stopping:
                    self._save(done)
        if done < self.steps:
            log.info("stopped after step %d as requested; run again to resume", done)
        for callback in self.callbacks:
            callback.on_end()
        return done == self.steps

    def start(self) -> int:
        """Resumes from the last checkpoint, if there is one. Returns the number of completed steps."""
        resumed = self.checkpoints.load()
        done = resumed["step"] if resumed else 0
        if resumed:
            self.bad_samples = resumed["bad_samples"]
            self.skipped_steps = resumed.get("skipped_steps", 0)  # older checkpoints lack it
            self.loader.load_state_dict(resumed["loader"])
            for callback in self.callbacks:
                if callback.name in resumed:
                    callback.load_state_dict(resumed[callback.name])
            log.info("resumed after step %d", done)
        else:
            self.checkpoints.check_space()
        for callback in self.callbacks:
            callback.on_start(done, self.steps)
        self._since = time.perf_counter()  # of the current interval of metrics, moved on by evaluations
        return done

    def step(self, done: int, batches: list[Batch], stop: StopRequest) -> bool:
        """Runs the step after `done` completed steps. Returns whether any rank was told to stop."""
        # Summed over the global batch before its first forward pass: the loss is the mean over all supervised tokens.
        supervised, bad, stopping = self.ranks.sum(
            [sum(sum(b.supervised) for b in batches), sum(b.num_bad for b in batches), stop.received]
        )
        self._count_bad_samples(int(bad))
        losses = self._backward(done, batches, supervised)
        take = all([callback.before_optimizer_step(losses) for callback in self.callbacks])  # a list: calls all of them
        train = self.job.train
        rate = learning_rate(
            done,
            steps=self.steps,
            peak=train.learning_rate,
            floor=train.min_learning_rate,
            warmup_steps=train.warmup_steps,
        )
        norm = self.engine.step(rate, skip=not take)
        taken = take and math.isfinite(norm)  # the engine skips a step whose gradient is not finite
        self.skipped_steps += not taken
        report = StepReport(**vars(losses), learning_rate=rate, grad_norm=norm, taken=taken, data_wait=self.loader.wait)
        self.loader.wait = 0.0
        for callback in self.callbacks:
            callback.after_step(report)
        scores = self._evaluate(report.step)
        if report.step % train.log_every == 0 or report.step == self.steps or scores is not None:
            self._measure(report, scores or {})
        return stopping > 0

    def _count_bad_samples(self, new: int) -> None:
        self.bad_samples += new
        if self.bad_samples > self.job.loading.max_bad_samples:
            raise DataError(
                f"{self.bad_samples} samples cannot be read or have images that do not decode (the log names each), "
                f"more than loading.max_bad_samples {self.job.loading.max_bad_samples}: check the disk, then run "
                "`honeybee verify` and rebuild the shards"
            )

    def _backward(self, done: int, batches: list[Batch], supervised: float) -> StepLosses:
        """Runs the forward and backward passes of a step. supervised: its number of supervised tokens, on all ranks."""
        # Seeding dropout by seed, step and rank means that no random state needs saving.
        torch.manual_seed(int(fingerprint([self.job.seed, done, self.ranks.rank]), 16) % 2**63)
        losses = []
        for batch in batches:
            more = self._attention(batch)
            batch = batch.to(self.ranks.device)
            loss_of_example = self._losses(batch, more)
            self.engine.backward(loss_of_example.sum() / max(supervised, 1))
            losses.append(loss_of_example.detach())
        example_losses = [own.tolist() for own in losses]
        by_dataset, tokens_by_dataset = self._by_dataset(batches, example_losses)
        sums = self.ranks.sum([*by_dataset, *tokens_by_dataset])
        return StepLosses(
            step=done + 1,
            batches=batches,
            example_losses=example_losses,
            loss=sum(sums[: len(by_dataset)]) / max(supervised, 1),
            losses=sums[: len(by_dataset)],
            supervised=sums[len(by_dataset) :],
        )

    def _evaluate(self, step: int) -> dict[str, float] | None:
        """Returns the scores of all callbacks, or None if no evaluation is due."""
        started = time.perf_counter()
        found = [scores for callback in self.callbacks if (scores := callback.evaluate(step)) is not None]
        if not found:
            return None
        self._since += time.perf_counter() - started
        return {name: value for scores in found for name, value in scores.items()}

    def _measure(self, report: StepReport, scores: dict[str, float]) -> None:
        """Collects a line of metrics, passes it on, and starts the next interval."""
        interval = Interval(report, time.perf_counter() - self._since)
        line: dict[str, Any] = {"step": report.step, "steps": self.steps}
        for callback in self.callbacks:
            line |= callback.measure(interval)
        line |= {"bad_samples": self.bad_samples, "skipped_steps": self.skipped_steps, **scores, "time": time.time()}
        if self.ranks.first:
            for callback in self.callbacks:
                callback.on_metrics(line)
        self._since = time.perf_counter()

    def _save(self, done: int) -> None:
        states = {callback.name: state for callback in self.callbacks if (state := callback.state_dict())}
        self.checkpoints.save(done, {**states, **self._state()})
        for callback in self.callbacks:
            callback.on_checkpoint(done)

    def _state(self) -> dict[str, Any]:
        """Returns the loop's own part of a checkpoint."""
        return {
            "bad_samples": self.bad_samples,
            "skipped_steps": self.skipped_steps,
            "loader": self.loader.state_dict(),
        }

    def _attention(self, batch: Batch) -> dict[str, Any]:
        """Returns extra model inputs: the boundaries of examples for packed attention, nothing for SDPA."""
        if self.job.train.attention == "sdpa":
            return {}
        return Examples.of(batch.position_ids, self.ranks.device).inputs()

    def _losses(self, batch: Batch, more: dict[str, Any]) -> Tensor:
        """Returns the cross-entropy of each example, (E,), summed over its supervised tokens; only these get logits.
        more: additional inputs of the model."""
        targets = F.pad(batch.labels[:, 1:], (0, 1), value=IGNORE_INDEX)  # position t predicts token t + 1
        supervised = targets != IGNORE_INDEX
        logits = self.engine.forward(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            pixel_values=batch.pixel_values,
            logits_to_keep=supervised,
            use_cache=False,
            **more,
        ).logits
        losses = F.cross_entropy(logits.float(), targets[supervised], reduction="none")
        example_of_token = batch.example_ids[supervised]
        return torch.zeros(len(batch.names), device=losses.device).index_add(0, example_of_token, losses)

    def _by_dataset(self, batches: list[Batch], losses: list[list[float]]) -> tuple[list[float], list[float]]:
        """Returns the sums of loss and of supervised tokens by dataset, for this rank."""
        total = [0.0] * len(self.loader.shards.datasets)
        tokens = [0.0] * len(total)
        for batch, own in zip(batches, losses, strict=True):
            for dataset, count, loss in zip(batch.datasets, batch.supervised, own, strict=True):
                if count:
                    total[dataset] += loss
                    tokens[dataset] += count
        return total, tokens
