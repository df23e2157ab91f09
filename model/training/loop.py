"""The loop over the steps of one stage."""

import contextlib
import logging
import math
import time
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from model.training.data.collate import IGNORED, Batch
from model.training.data.loader import Loader
from model.training.data.shard_reader import DataError
from model.training.engine.checkpoint import Checkpoints
from model.training.engine.deepspeed_engine import Engine
from model.training.engine.optimizer import learning_rate
from model.training.engine.packed_attention import Examples
from model.training.job import Job
from model.training.monitor.flops import Flops
from model.training.monitor.loss_spikes import Spikes
from model.training.monitor.metrics import Metrics
from model.training.monitor.periodic_eval import Evaluation
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
        metrics: Metrics,
        flops: Flops | None,
        evaluation: Evaluation | None,
    ):
        """flops: None if the model is not covered by flops.py. evaluation: None if the stage has none."""
        self.job, self.steps, self.engine, self.loader = job, steps, engine, loader
        self.checkpoints, self.metrics, self.ranks = checkpoints, metrics, engine.ranks
        self.flops, self.evaluation, self.spikes = flops, evaluation, Spikes(job.work, job.train, engine.ranks)
        self.bad_samples = 0

    def train(self) -> bool:
        """Trains the remaining steps. Returns False if it was told to stop before the last and saved a checkpoint."""
        with StopRequest() as stop:
            return self._train(stop)

    def _train(self, stop: StopRequest) -> bool:
        train = self.job.train
        resumed = self.checkpoints.load()
        done = resumed["step"] if resumed else 0
        if resumed:
            self.bad_samples = resumed["bad_samples"]
            self.loader.load_state_dict(resumed["loader"])
            log.info("resumed after step %d", done)
        else:
            self.checkpoints.check_space()
        self.metrics.begin(done, resumed and resumed["metrics"])
        self.spikes.begin(done, resumed and resumed.get("spikes"))  # older checkpoints lack it
        stopping = False
        with contextlib.closing(iter(self.loader)) as steps:
            while done < self.steps and not stopping:
                rate, norm, stopping = self._step(done, next(steps), stop)
                done += 1
                scores = self._evaluate(done)
                if done % train.log_every == 0 or done == self.steps or scores is not None:
                    counts = {"bad_samples": self.bad_samples, "skipped_steps": self.spikes.skipped_steps}
                    self.metrics.write(done, rate, norm, self.loader.wait, **counts, **(scores or {}))
                    self.loader.wait = 0.0
                if done % train.save_every == 0 or done == self.steps or stopping:
                    self.checkpoints.save(done, self._state())
        if done < self.steps:
            log.info("stopped after step %d as requested; run again to resume", done)
        self.metrics.close()
        return done == self.steps

    def _evaluate(self, done: int) -> dict[str, float] | None:
        """Returns the scores after `done` steps ({} except on the first rank), or None if no evaluation is due."""
        if self.evaluation is None or self.job.train.evaluate_every is None or done % self.job.train.evaluate_every:
            return None
        started = time.perf_counter()
        scores = self.evaluation.scores(done)
        self.metrics.leave_out(time.perf_counter() - started)
        return scores

    def _state(self) -> dict[str, Any]:
        return {
            "metrics": self.metrics.state(),
            "bad_samples": self.bad_samples,
            "spikes": self.spikes.state(),
            "skipped_steps": self.spikes.skipped_steps,
            "loader": self.loader.state_dict(),
        }

    def _step(self, step: int, batches: list[Batch], stop: StopRequest) -> tuple[float, float, bool]:
        """Runs a step, counted from 0. Returns learning rate, gradient norm, and whether any rank was told to stop."""
        train = self.job.train
        # Summed over the global batch before its first forward pass: the loss is the mean over all supervised tokens.
        supervised, bad, stopping = self.ranks.sum(
            [sum(sum(b.supervised) for b in batches), sum(b.num_bad for b in batches), stop.received]
        )
        self.bad_samples += int(bad)
        if self.bad_samples > self.job.loading.max_bad_samples:
            raise DataError(
                f"{self.bad_samples} samples cannot be read or have images that do not decode (the log names each), "
                f"more than loading.max_bad_samples {self.job.loading.max_bad_samples}: check the disk, then run "
                "`honeybee verify` and rebuild the shards"
            )
        # Seeding dropout by seed, step and rank means that no random state needs saving.
        torch.manual_seed(int(fingerprint([self.job.seed, step, self.ranks.rank]), 16) % 2**63)
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
        loss = sum(sums[: len(by_dataset)]) / max(supervised, 1)
        reason, usual = self.spikes.judge(loss)
        rate = learning_rate(
            step,
            steps=self.steps,
            peak=train.learning_rate,
            floor=train.min_learning_rate,
            warmup_steps=train.warmup_steps,
        )
        norm = self.engine.step(rate, skip=self.spikes.skips(reason))
        if reason != "loss not finite" and not math.isfinite(norm):
            reason = "gradient not finite"
        self.spikes.close_step(step + 1, reason, loss, usual, norm, batches, example_losses)
        if reason == "loss not finite":
            sums = [0.0] * len(sums)  # otherwise the mean over the following steps would not be finite either
        self.metrics.add(
            sums[: len(by_dataset)],
            sums[len(by_dataset) :],
            samples=sum(len(b.names) for b in batches),
            tokens=sum(b.num_tokens for b in batches),
            positions=sum(b.input_ids.numel() for b in batches),
            flops=self._flops(batches),
        )
        return rate, norm, stopping > 0

    def _flops(self, batches: list[Batch]) -> int | None:
        if self.flops is None:
            return None
        return sum(self.flops.of(b.lengths, sum(b.supervised), len(b.pixel_values)) for b in batches)

    def _attention(self, batch: Batch) -> dict[str, Any]:
        """Returns extra model inputs: the boundaries of examples for packed attention, nothing for SDPA."""
        if self.job.train.attention == "sdpa":
            return {}
        return Examples.of(batch.position_ids, self.ranks.device).inputs()

    def _losses(self, batch: Batch, more: dict[str, Any]) -> Tensor:
        """Returns the cross-entropy of each example, (E,), summed over its supervised tokens; only these get logits.
        more: additional inputs of the model."""
        targets = F.pad(batch.labels[:, 1:], (0, 1), value=IGNORED)  # position t predicts token t + 1
        supervised = targets != IGNORED
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
