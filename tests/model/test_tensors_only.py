"""Weight files that run code when they are unpickled: nothing runs, and no error advises to let it."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from model import HoneybeeForConditionalGeneration
from model.load_backbones import load_llm, load_vision

ADVICE = ("weights_only", "trust", "safe_globals")


class Evil:
    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.trace),)


def spoiled(directory: Path, target: Path, trace: Path) -> Path:
    shutil.copytree(directory, target)
    (target / "model.safetensors").unlink()
    torch.save({"weight": Evil(trace)}, target / "pytorch_model.bin")
    return target


def test_evil_weights_run_nothing_and_are_refused_without_advice(
    tiny_model: HoneybeeForConditionalGeneration, tiny_backbones: Path, tiny_processor: object, tmp_path: Path
) -> None:
    saved, trace = tmp_path / "saved", tmp_path / "ran"
    tiny_model.save_pretrained(saved)
    tiny_processor.save_pretrained(saved)  # type: ignore[attr-defined]
    vision, llm = (spoiled(tiny_backbones / part, tmp_path / part, trace) for part in ("vision", "llm"))
    model = spoiled(saved, tmp_path / "model", trace)
    loads: list[tuple[Path, Callable[[], object]]] = [
        (vision, lambda: load_vision(vision, None, torch.float32)),
        (llm, lambda: load_llm(llm, tiny_processor.tokenizer, torch.float32)),  # type: ignore[attr-defined]
        (model, lambda: HoneybeeForConditionalGeneration.from_pretrained(model)),
    ]
    for directory, loading in loads:
        with pytest.raises(ValueError, match="contains more than tensors, and is therefore not") as error:
            loading()
        assert str(directory) in str(error.value) and not any(word in str(error.value) for word in ADVICE)
    assert not trace.exists()
