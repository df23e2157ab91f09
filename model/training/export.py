"""Writes the trained model, its processor and tokenizer as one directory, whole when its manifest is there."""

import json
import os
import shutil
from pathlib import Path
from typing import Any, cast

from model.card import CARD, model_card
from model.configuration import HoneybeeConfig
from model.modeling import HoneybeeForConditionalGeneration
from model.processing import HoneybeeProcessor
from model.training.engine import Engine
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

    The directory loads with `from_pretrained`. Raises OSError where the disk is full; there is no manifest then.
    """
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
        files = sorted(path for path in partial.iterdir() if path.is_file())
        for path in files:
            with path.open("rb") as file:
                os.fsync(file.fileno())
            path.replace(output / path.name)
        shutil.rmtree(partial)
        manifest = {**facts, "files": {path.name: (output / path.name).stat().st_size for path in files}}
        write_atomic(output / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    engine.ranks.barrier()
