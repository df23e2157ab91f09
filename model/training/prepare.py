"""Prepares a stage: loads its model, plans its steps, and checks that both fit the shards."""

import logging
from pathlib import Path
from typing import Any

import torch

from model.modeling import HoneybeeForConditionalGeneration
from model.processing import HoneybeeProcessor
from model.training.data.shard_reader import DataError, Shards
from model.training.job import Init, Job
from model.training.model_card import LOCAL_WEIGHTS, backbone_name
from model.training.settings import JobError
from pipelines.core.files import file_sha256
from pipelines.core.integrity import lists_checksums, read_manifest
from pipelines.packing.plan import PackingError, PackingPlan, cached_plan

log = logging.getLogger("honeybee.training")


def plan_steps(job: Job, shards: Shards, image_tokens: int, keep: bool = True) -> tuple[PackingPlan, int]:
    """Returns the plan of the stage's packs and its number of steps. keep: cache the plan in the work directory, for a
    resumed run. Raises DataError or JobError, saying what to change, if the plan is impossible or has too few packs."""
    train = job.train
    try:
        threads = job.loading.decode_threads
        plan = cached_plan(job.work, shards.lengths, train.packing, image_tokens, threads, keep)
    except PackingError as error:
        raise DataError(f"{job.shards}: {error}") from None
    steps, left = divmod(plan.num_packs, train.global_batch)
    what = "packs" if train.packing else "samples"
    if (train.steps or 1) > steps:
        raise JobError(
            f"{train.steps or 1} steps of {train.global_batch} need {(train.steps or 1) * train.global_batch} {what}, "
            f"but {job.shards} has {plan.num_packs}: build more samples or lower train.steps"
        )
    if train.packing:
        log.info(
            "packed %s samples into %s packs of %s positions, %.2f %% of which are used",
            *(f"{shards.num_samples:,}", f"{plan.num_packs:,}", f"{train.packing.max_tokens:,}", 100 * plan.used),
        )
    if train.steps is None:
        log.info("%s steps; the last %d %s do not fill a global batch", f"{steps:,}", left, what)
        if train.warmup_steps >= steps:
            raise JobError(f"warmup_steps {train.warmup_steps} must be less than the {steps} steps: lower warmup_steps")
    return plan, train.steps or steps


def load(init: Init, seed: int, dtype: torch.dtype) -> tuple[HoneybeeForConditionalGeneration, HoneybeeProcessor]:
    """Returns the model and processor that a stage starts from."""
    if init.model is not None:
        model = HoneybeeForConditionalGeneration.from_pretrained(init.model, dtype=dtype)
        return model, HoneybeeProcessor.from_pretrained(init.model)
    assert init.projector is not None and init.vision is not None and init.llm is not None  # by Init
    model = HoneybeeForConditionalGeneration.from_backbones(
        init.vision,
        init.llm,
        init.projector.model_dump(),
        init.tokenizer_directory,
        vision_layer=init.vision_layer,
        image_size=init.image_size,
        seed=seed,
        dtype=dtype,
    )
    processor = HoneybeeProcessor.from_backbones(
        init.vision, init.tokenizer_directory, model.config.num_image_tokens, init.image_size, init.image_fit
    )
    return model, processor


def provenance(init: Init) -> dict[str, Any]:
    """Returns, for the manifest and card of a model, `parts`, the names of its backbones, and its previous `stages`."""
    if init.model is None:
        return {"parts": {"vision": backbone_name(str(init.vision)), "llm": backbone_name(str(init.llm))}, "stages": []}
    facts = read_manifest(init.model) if lists_checksums(init.model) else {}
    return {
        "parts": facts.get("parts", {"vision": LOCAL_WEIGHTS, "llm": LOCAL_WEIGHTS}),
        "stages": facts.get("stages", []),
    }


def check_compatibility(
    shards: Shards, model: HoneybeeForConditionalGeneration, processor: HoneybeeProcessor, tokenizer: Path
) -> None:
    """Raises JobError or DataError unless shards, tokenizer and model match."""
    missing = [name for name in ("pad", "bos", "eos") if getattr(processor.tokenizer, f"{name}_token_id") is None]
    if missing:
        raise JobError(f"the tokenizer in {tokenizer} has no {' and no '.join(missing)} token")
    rows, known = model.config.text_config.vocab_size, len(processor.tokenizer)
    if rows < known:
        raise JobError(
            f"the language model has {rows} token embeddings, but the tokenizer in {tokenizer} has {known} tokens"
        )
    digest = file_sha256(tokenizer / "tokenizer.json")[:16]
    if shards.tokenizer != digest:
        raise DataError(
            f"{shards.where} was built with tokenizer {shards.tokenizer}, but {tokenizer} is {digest}: "
            "rebuild the shards with this tokenizer"
        )
    if shards.image_token_id != model.config.image_token_id:
        raise DataError(
            f"{shards.where} has image token {shards.image_token_id}, but the model has "
            f"{model.config.image_token_id}: rebuild the shards"
        )
