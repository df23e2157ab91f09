"""Chooses the callbacks of a job (model/training/callback.py)."""

from collections.abc import Mapping, Sequence
from typing import Any

from model.distributed import Ranks
from model.modeling import HoneybeeForConditionalGeneration
from model.processing import HoneybeeProcessor
from model.training.callback import Callback
from model.training.job import Job
from model.training.monitor.flops import count_flops, peak_flops
from model.training.monitor.loss_spikes import LossSpikes
from model.training.monitor.metrics import MetricsFile, ProgressLog, TensorBoard
from model.training.monitor.periodic_eval import PeriodicEvaluation
from model.training.monitor.progress import Progress
from model.training.monitor.resources import Resources
from model.training.monitor.throughput import FlopsRate, Throughput
from model.training.monitor.wandb_run import WandbRun


def monitors(
    job: Job,
    datasets: Sequence[str],
    identity: Mapping[str, Any],
    model: HoneybeeForConditionalGeneration,
    processor: HoneybeeProcessor,
    ranks: Ranks,
) -> list[Callback]:
    """Returns the callbacks that measure and judge the steps; their order is that of the metrics in a line.

    datasets: those of the shards. identity: everything that the weights depend on. All ranks must call it. Raises
    JobError if the job evaluates a benchmark that cannot be read, asked or scored.
    """
    train = job.train
    chosen = [LossSpikes(job.work, train, ranks), Progress(datasets, train), Throughput(ranks)]
    flops = count_flops(model.config, train.trains, adapters=train.lora is not None)
    if flops is not None:
        chosen.append(FlopsRate(flops, peak_flops(job, ranks.device), ranks))
    chosen.append(Resources(ranks))
    if train.evaluate is not None:
        chosen.append(PeriodicEvaluation(job, identity, model, processor, ranks))
    return chosen


def writers(job: Job, ranks: Ranks) -> list[Callback]:
    """Returns the callbacks that write the lines of metrics: none except on the first rank.

    Raises JobError if the job wants Weights & Biases and its run does not start.
    """
    if not ranks.first:
        return []
    chosen: list[Callback] = [MetricsFile(job.work), TensorBoard(job.work)]
    if job.train.wandb is not None:
        config = {"stage": job.stage, "seed": job.seed, "ranks": ranks.world, **job.train.model_dump(mode="json")}
        chosen.append(WandbRun(job.train.wandb, job.work, config))
    return [*chosen, ProgressLog()]
