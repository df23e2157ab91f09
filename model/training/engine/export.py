"""Writes the trained model, its processor and tokenizer to one directory, which is complete once it has a manifest."""

import os
import shutil
from pathlib import Path
from typing import Any, cast

from model.configuration import HoneybeeConfig
from model.modeling import HoneybeeForConditionalGeneration
from model.processing import HoneybeeProcessor
from model.training.engine.deepspeed_engine import Engine
from model.training.engine.lora import ADAPTER, merge_adapters, save_adapter
from model.training.model_card import CARD, LOCAL_WEIGHTS, model_card
from pipelines.core.integrity import write_manifest


def save_model(
    engine: Engine,
    model: HoneybeeForConditionalGeneration,
    processor: HoneybeeProcessor,
    tokenizer: Path,
    output: Path,
    facts: dict[str, Any],
) -> None:
    """Writes the model directory, which loads with `from_pretrained`. All ranks must call it.

    tokenizer: the directory of the run's tokenizer; its tokenizer.json is copied unchanged, since its checksum tells
    which shards fit. facts: the content of the manifest and model card. Adapters are merged and also saved separately
    in `adapter/`. Raises OSError or SafetensorError if the disk is full; no manifest is written then.
    """
    lora = engine.train.lora
    adapters = merge_adapters(model.llm, engine.gathered) if lora else {}
    gathered = {}
    for name, parameter in engine.full_parameters():
        if engine.train.zero_stage == 3 and engine.ranks.first:
            gathered[name] = parameter.to("cpu", copy=True)
    if engine.ranks.first:
        partial = output / ".partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        state = None
        if gathered:
            names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
            buffers = {key: value for key, value in model.state_dict().items() if key not in names}
            state = {**gathered, **buffers}
        model.save_pretrained(partial, state_dict=state)
        processor.save_pretrained(partial)
        shutil.copyfile(tokenizer / "tokenizer.json", partial / "tokenizer.json")
        (partial / CARD).write_text(model_card(cast(HoneybeeConfig, model.config), facts))
        if lora:
            save_adapter(partial / ADAPTER, lora, adapters, language_model(facts))
        files = sorted(path.relative_to(partial) for path in partial.rglob("*") if path.is_file())
        for path in files:
            with (partial / path).open("rb") as file:
                os.fsync(file.fileno())
            (output / path).parent.mkdir(exist_ok=True)
            (partial / path).replace(output / path)
        shutil.rmtree(partial)
        write_manifest(output, facts)
    engine.ranks.barrier()


def language_model(facts: dict[str, Any]) -> str | None:
    """Returns the hub name of the language model that the last stage started from; None if it did not come from a hub
    or an earlier stage has trained it."""
    name = facts["parts"]["llm"]
    return None if name == LOCAL_WEIGHTS or any("llm" in stage["trains"] for stage in facts["stages"][:-1]) else name
