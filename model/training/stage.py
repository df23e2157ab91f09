"""Runs one stage of training: what `python -m model.training JOB.json` does in every rank."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers

from model import distributed
from model.distributed import Ranks
from model.training.callback import Callback
from model.training.callbacks import monitors, writers
from model.training.data.collate import Collator
from model.training.data.decode import Decoder
from model.training.data.loader import Loader
from model.training.data.rank_assignment import PackAssignment
from model.training.data.shard_reader import Shards
from model.training.engine.checkpoint import Checkpoints
from model.training.engine.deepspeed_engine import Engine
from model.training.engine.export import save_model
from model.training.engine.lora import add_adapters
from model.training.engine.optimizer import freeze
from model.training.engine.packed_attention import NAME as PACKED
from model.training.job import Job
from model.training.loop import Loop, log
from model.training.prepare import check_compatibility, load, plan_steps, provenance
from model.training.settings import JobError, describe_trained
from model.training.signals import STOPPED
from model.training.work_directory import explain_full_disk, lock_work_directory
from pipelines.core.integrity import faults
from pipelines.core.store import fingerprint


def run(job: Job, callbacks: Sequence[Callback] = ()) -> int:
    """Trains the stage from its last checkpoint, or from the start, and writes the model. Returns the exit code.

    callbacks: called after those of the job (callbacks.py).

    Raises JobError, DataError, CheckpointError, DiskFullError or NonFiniteError, whose messages say what to do.
    """
    if _is_complete(job.output):
        log.info("%s is already complete: nothing to train", job.output)
        return 0
    try:
        job.train.accumulation(int(os.environ.get("WORLD_SIZE", "1")))
    except ValueError as error:
        raise JobError(str(error)) from None
    limit = None if job.loading.cache_gib is None else round(job.loading.cache_gib * 2**30)
    shards = Shards(job.shards, job.image_roots, job.loading.cache, limit)
    ranks = distributed.init_ranks(job.device)
    with explain_full_disk(job.work), lock_work_directory(job.work, ranks):
        code = _run(job, shards, ranks, callbacks)
    distributed.shutdown()  # not after an error: the other ranks would fail before this one has reported it
    return code


def _is_complete(output: Path) -> bool:
    """Returns whether the model is there and as it was written. If it is damaged, it is written again from the last
    checkpoint, which every rank finds out for itself before they meet."""
    try:
        found = faults(output)
    except FileNotFoundError:
        return False
    if found:
        log.warning("%s: the model is rebuilt from the last checkpoint", found[0])
    return not found


def _run(job: Job, shards: Shards, ranks: Ranks, own: Sequence[Callback]) -> int:
    train = job.train
    of_metrics = writers(job, ranks)  # first, since Weights & Biases may refuse the run
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(job.seed)
    dtype = torch.float32 if train.precision == "fp32" else torch.bfloat16
    model, processor = load(job.init, job.seed, dtype)
    if train.lora is not None:
        add_adapters(model.llm, train.lora, job.seed)
    check_compatibility(shards, model, processor, job.init.tokenizer_directory)
    plan, steps = plan_steps(job, shards, model.config.num_image_tokens, keep=ranks.first)
    log.info(
        "%s: %d steps of %d sequences, on %d ranks (%s) × %d passes × %d sequences; ZeRO-%d, %s",
        *(job.stage, steps, train.global_batch),
        *(ranks.world, ranks.device.type, train.accumulation(ranks.world), train.micro_batch),
        *(train.zero_stage, train.precision),
    )
    log.info("training %s", describe_trained(train.trains, train.lora))
    model.train()
    for part, (trained, size) in freeze(model, train.trains).items():
        log.info("%s: %s of %s parameters are trainable", part, f"{trained:,}", f"{size:,}")
    if train.attention == "packed":
        model.llm.set_attn_implementation(PACKED)
    if train.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})

    identity = {**job.identity(), "shards": fingerprint(shards.key)}
    callbacks = [*monitors(job, shards.datasets, identity, model, processor, ranks), *of_metrics, *own]
    engine = Engine(model, train, ranks)
    checkpoints = Checkpoints(job.work, train.keep_checkpoints, engine, identity)
    loader = Loader(
        shards,
        plan,
        PackAssignment(train.global_batch, train.micro_batch, ranks.rank, ranks.world),
        Collator(
            image_token_id=shards.image_token_id,
            num_image_tokens=model.config.num_image_tokens,
            pad_token_id=processor.tokenizer.pad_token_id,
            max_length=getattr(model.config.text_config, "max_position_embeddings", sys.maxsize),
            datasets=shards.datasets,
            pin_memory=ranks.device.type == "cuda",
        ),
        Decoder.like(processor.image_processor, train.decode),
        job.loading,
    )
    loop = Loop(job, steps, engine, loader, checkpoints, callbacks)
    if not loop.train():
        return STOPPED
    stage = {
        "stage": job.stage,
        "steps": steps,
        "global_batch": train.global_batch,
        "packed": train.packing is not None,
        "trains": list(train.trains),
        **({"lora": train.lora.model_dump(mode="json")} if train.lora else {}),
        "datasets": shards.shares,
        "shards": fingerprint(shards.key),
        "bad_samples": loop.bad_samples,
        "skipped_steps": loop.skipped_steps,
    }
    before = provenance(job.init)
    facts = {**before, "stages": [*before["stages"], stage]}
    with explain_full_disk(job.output):
        save_model(engine, model, processor, job.init.tokenizer_directory, job.output, facts)
    log.info("saved the model to %s", job.output)
    return 0
