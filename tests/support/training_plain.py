"""Reference for the training tests: the same stage in a plain torch loop; and helpers to compare results."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from support.training_ranks import losses

from model import HoneybeeForConditionalGeneration, HoneybeeProcessor
from model.training.data.collate import Collator
from model.training.data.decode import Decoder
from model.training.data.shard_reader import Shards
from model.training.engine.optimizer import freeze, learning_rate, parameter_groups
from model.training.job import Job
from model.training.prepare import plan_steps

Groups = Callable[[HoneybeeForConditionalGeneration], list[dict[str, Any]]]


def plain_torch(job: dict[str, Any], groups: Groups | None = None) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Trains the stage without our loop, packs and masks; returns the loss of each step and the final weights.

    groups: makes AdamW's parameter groups of the model, each with its `peak` rate; None: parameter_groups."""
    checked = Job.model_validate(job)
    settings, init = checked.train, checked.init
    model = HoneybeeForConditionalGeneration.from_backbones(
        init.vision, init.llm, {"type": "linear", "num_tokens": 16}, init.tokenizer, seed=checked.seed
    )
    processor = HoneybeeProcessor.from_backbones(init.vision, init.tokenizer, 16)
    freeze(model.train(), settings.trains)
    shards = Shards(checked.shards)
    collator = Collator(shards.image_token_id, 16, processor.tokenizer.pad_token_id, 512, shards.datasets)
    plan, steps = plan_steps(checked, shards, 16)
    optimizer = torch.optim.AdamW(
        groups(model) if groups else parameter_groups(model, settings.weight_decay),
        lr=1.0,
        betas=settings.betas,
        eps=settings.epsilon,
        foreach=False,
    )
    lowest = settings.min_learning_rate / settings.learning_rate
    history = []
    for step in range(steps):
        packs = plan.packs(step * settings.global_batch, (step + 1) * settings.global_batch)
        examples = shards.read(sorted(i for pack in packs for i in pack.samples.tolist()))
        pixels, _ = Decoder.like(processor.image_processor)(
            [image.read() for example in examples for image in example.images]
        )
        batch = collator([[example] for example in examples], pixels, [False] * len(examples))  # one example per row
        loss = model(input_ids=batch.input_ids, labels=batch.labels, pixel_values=pixels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        for group in optimizer.param_groups:
            peak = group.get("peak", settings.learning_rate)
            schedule = {"steps": steps, "warmup_steps": settings.warmup_steps}
            group["lr"] = learning_rate(step, peak=peak, floor=lowest * peak, **schedule)
        optimizer.step()
        optimizer.zero_grad()
        history.append(loss.item())
    return history, model.state_dict()


def weights(job: dict[str, Any]) -> dict[str, torch.Tensor]:
    return load_file(Path(job["output"]) / "model.safetensors")


def assert_bit_equal(job: dict[str, Any], other: dict[str, Any]) -> None:
    assert losses(job) == losses(other)
    found, expected = weights(job), weights(other)
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
