"""Writes the trained model, its processor and tokenizer as one directory, whole when its manifest is there."""

import json
import os
import shutil
from pathlib import Path
from typing import Any, cast

from model.card import CARD, LOCAL, model_card
from model.configuration import HoneybeeConfig
from model.modeling import HoneybeeForConditionalGeneration
from model.processing import HoneybeeProcessor
from model.training.engine import Engine
from model.training.lora import ADAPTER, merge_adapters, save_adapter
from pipelines.store import MANIFEST, write_atomic


def save_model(
    engine: Engine,
    model: HoneybeeForConditionalGeneration,
    processor: HoneybeeProcessor,
    tokenizer: Path,
    output: Path,
    facts: dict[str, Any],
) -> None:
    """All ranks must call it. tokenizer: the directory that the run's tokenizer came from; its tokenizer.json is kept
    as it is, since its sum says which shards fit. facts: what the manifest shall say, and the model card.

    The directory loads with `from_pretrained`; adapters are merged, and lie in `adapter/` as well. Raises OSError or
    SafetensorError where the disk is full; there is no manifest then.
    """
    lora = engine.train.lora
    adapters = merge_adapters(model.llm, engine.gathered) if lora else {}
    whole = {}
    for name, parameter in engine.full_parameters():
        if engine.train.zero_stage == 3 and engine.ranks.first:
            whole[name] = parameter.to("cpu", copy=True)
    if engine.ranks.first:
        partial = output / ".partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        state = None
        if whole:
            names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
            buffers = {key: value for key, value in model.state_dict().items() if key not in names}
            state = {**whole, **buffers}
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
        manifest = {**facts, "files": {path.as_posix(): (output / path).stat().st_size for path in files}}
        write_atomic(output / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    engine.ranks.barrier()


def language_model(facts: dict[str, Any]) -> str | None:
    """The hub name of the language model that the last stage began with; None where it is on no hub, or not any more
    what it was there."""
    name = facts["parts"]["llm"]
    return None if name == LOCAL or any("llm" in stage["trains"] for stage in facts["stages"][:-1]) else name
