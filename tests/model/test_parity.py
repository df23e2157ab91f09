"""Common uses of multimodal models in transformers: attention implementations, torch.compile, LoRA, offloading."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForImageTextToText

from model import HoneybeeForConditionalGeneration
from model.projectors import PROJECTORS, Shape, build_projector

pytestmark = pytest.mark.slow

IMAGE = 3  # the id of <image> in the tiny tokenizer; each image has four image tokens


def batch() -> dict[str, Tensor]:
    """Returns two left-padded rows, the first of which has two images."""
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(7))
    rows = [[1, *[IMAGE] * 8, 70, 71, 72], [0, 0, 0, 0, 1, *[IMAGE] * 4, 73, 74, 75]]
    ids = torch.tensor(rows)
    labels = ids.masked_fill((ids == IMAGE) | (ids < 70), -100)
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "pixel_values": images, "labels": labels}


def logits_of(model: Any) -> Tensor:
    """Returns the logits of all tokens except padding."""
    given = batch()
    with torch.no_grad():
        output = model(**{**given, "labels": None})
    return output.logits[given["attention_mask"].bool()]


@pytest.fixture
def saved(tiny_model: Any, tmp_path: Path) -> Path:
    tiny_model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="flex attention needs g++ to be compiled")


@pytest.mark.parametrize("implementation", ["eager", "sdpa", pytest.param("flex_attention", marks=COMPILER)])
def test_attention_implementation_applies_to_the_encoder_and_the_language_model(
    saved: Path, tiny_model: Any, implementation: str
) -> None:
    model = AutoModelForImageTextToText.from_pretrained(saved, attn_implementation=implementation)
    assert model.llm.config._attn_implementation == implementation
    assert model.vision.config._attn_implementation == implementation
    torch.testing.assert_close(logits_of(model), logits_of(tiny_model), rtol=1e-4, atol=1e-5)


def test_compiled_model_has_the_same_loss_and_gradients(tiny_model: Any) -> None:
    tiny_model.train()
    expected = tiny_model(**batch()).loss
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in tiny_model.named_parameters() if p.grad is not None}
    tiny_model.zero_grad()
    loss = torch.compile(tiny_model, backend="aot_eager")(**batch()).loss
    loss.backward()
    torch.testing.assert_close(loss, expected)
    for name, parameter in tiny_model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("type", sorted(PROJECTORS))
def test_every_projector_compiles_without_graph_breaks(type: str) -> None:
    small: dict[str, Any] = {"c-abstractor": {"hidden_size": 32, "depth": 1}}
    small["d-abstractor"] = {"hidden_size": 32, "num_layers": 1, "intermediate_size": 32}
    small["resampler"] = {"hidden_size": 32, "num_layers": 1, "intermediate_size": 32, "num_heads": 4}
    projector = build_projector(type, Shape(16, 16, 32, 24), small.get(type, {})).eval()
    features = torch.randn(2, 16, 32)
    compiled = torch.compile(projector, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(features), projector(features))


def test_lora_trains_only_its_own_weights_and_merges(tiny_model: Any, tmp_path: Path) -> None:
    """Uses the authors' settings: rank 8, alpha 32, dropout 0.05 on q and v of the language model."""
    torch.manual_seed(0)
    untouched = {name: p.detach().clone() for name, p in tiny_model.named_parameters()}
    lora = LoraConfig(r=8, lora_alpha=32, lora_dropout=0.05, target_modules=r"llm\..*\.(q|v)_proj")
    model: Any = get_peft_model(tiny_model, lora)
    model.gradient_checkpointing_enable()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(trained) == 2 * 2 * 2  # layers, projections, A and B
    optimizer = torch.optim.SGD(trained, lr=0.1)
    inputs = batch()
    first = model.eval()(**inputs).loss  # evaluated without dropout, both here and after training
    model.train()
    for _ in range(5):
        optimizer.zero_grad()
        model(**inputs).loss.backward()
        optimizer.step()
    assert model.eval()(**inputs).loss < first
    expected = logits_of(model)
    ids = batch()["input_ids"][:1]
    assert model.generate(input_ids=ids, pixel_values=batch()["pixel_values"][:2], max_new_tokens=3).shape == (1, 15)
    model.save_pretrained(tmp_path / "adapter")
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits_of(merged), expected, rtol=1e-4, atol=1e-5)
    changed = {name for name, p in merged.named_parameters() if not torch.equal(p, untouched[name])}
    assert changed and all(name.endswith(("q_proj.weight", "v_proj.weight")) for name in changed)
    with torch.no_grad():
        for name, parameter in merged.named_parameters():
            parameter.copy_(untouched[name])
    again = PeftModel.from_pretrained(merged, str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(logits_of(again), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("type", ["c-abstractor", "d-abstractor", "resampler"])
def test_parts_that_do_not_fit_a_device_are_offloaded(type: str, tiny_backbones: Path, tmp_path: Path) -> None:
    settings = {"c-abstractor": {"hidden_size": 32, "depth": 1}, "d-abstractor": {"hidden_size": 32, "num_layers": 1}}
    settings["resampler"] = {"hidden_size": 32, "num_layers": 1}
    projector = {"type": type, "num_tokens": 4, "settings": settings[type]}
    model = HoneybeeForConditionalGeneration.from_backbones(
        tiny_backbones / "vision", tiny_backbones / "llm", projector, tiny_backbones / "llm"
    )
    model.save_pretrained(tmp_path / "model")
    everywhere = {"vision": "disk", "projector": "disk", "llm.model.layers": "disk", "llm.lm_head": "disk"}
    everywhere |= {f"llm.model.{part}": "cpu" for part in ("embed_tokens", "norm", "rotary_emb")}
    loaded = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "model", device_map=everywhere, offload_folder=tmp_path / "offload"
    )
    assert next(loaded.llm.model.layers[0].parameters()).is_meta and next(loaded.projector.parameters()).is_meta
    torch.testing.assert_close(logits_of(loaded), logits_of(model))
    automatic = AutoModelForImageTextToText.from_pretrained(tmp_path / "model", device_map="auto")
    torch.testing.assert_close(logits_of(automatic), logits_of(model))


def test_no_layer_is_split_across_devices(tiny_model: Any) -> None:
    assert {"LlamaDecoderLayer", "CLIPEncoderLayer", "CAbstractor"} <= set(tiny_model._no_split_modules)


def test_large_models_are_saved_in_shards(tiny_model: Any, tmp_path: Path) -> None:
    tiny_model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), tiny_model.parameters(), strict=True))
