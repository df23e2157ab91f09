"""Loading rejects a directory whose files are inconsistent, and names the inconsistency."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from model.check_directory import ModelError
from model.generation.generate import load
from model.processing import HoneybeeProcessor
from model.training.engine.packed_attention import NAME as PACKED
from model.training.model_card import model_card

FACTS: dict[str, Any] = {
    "parts": {"vision": "openai/clip-vit-large-patch14", "llm": "lmsys/vicuna-7b-v1.5"},
    "stages": [
        {
            "stage": "finetune",
            "steps": 4000,
            "global_batch": 128,
            "packed": False,
            "trains": ["projector", "llm"],
            "datasets": {"vqav2": 0.6, "gqa": 0.4},
        }
    ],
}


@pytest.fixture
def saved(tiny_model: Any, tiny_processor: Any, tmp_path: Path) -> Path:
    tiny_model.save_pretrained(tmp_path / "model")
    tiny_processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def test_consistent_directory_is_loaded(saved: Path) -> None:
    model, processor = load(saved)
    assert model.config.num_image_tokens == processor.num_image_tokens == 4


@pytest.mark.parametrize(
    ("file", "edit", "message"),
    [
        ("config.json", lambda c: c.pop("text_config"), "does not contain the object `text_config`"),
        ("config.json", lambda c: c.update(vision_config=None), "does not contain the object `vision_config`"),
        ("config.json", lambda c: c.update(projector="linear"), "does not contain the object `projector`"),
        ("config.json", lambda c: c.update(image_token_id=5), "image_token_id is 5"),
        ("config.json", lambda c: c["vision_config"].update(patch_size=0), "cannot be loaded"),
        ("config.json", lambda c: c["vision_config"].update(image_size=64), r"\(64, 64\) in config.json"),
        ("config.json", lambda c: c["projector"].update(num_tokens="4"), "projector.num_tokens must be .* found '4'"),
        ("config.json", lambda c: c["text_config"].update(vocab_size=10), "vocab_size in config.json is 10"),
        ("processor_config.json", lambda c: c.update(num_image_tokens=9), "num_image_tokens is 9 .* has 4 tokens"),
        ("processor_config.json", lambda c: c.update(num_image_tokens=None), "num_image_tokens is None"),
        (
            "processor_config.json",
            lambda c: c["image_processor"].update(image_std=[0, 0, 0]),
            "image_std must be greater",
        ),
        (
            "processor_config.json",
            lambda c: c["image_processor"].update(image_mean=[0.5]),
            "image_mean must be three finite numbers",
        ),
        ("processor_config.json", lambda c: c["image_processor"].update(do_normalize=False), "do_normalize is False"),
        ("processor_config.json", lambda c: c["image_processor"].update(size={"height": 0, "width": 0}), "size.height"),
        ("tokenizer.json", lambda c: c.clear(), "cannot be loaded"),
    ],
)
def test_inconsistency_is_named(saved: Path, file: str, edit: Any, message: str) -> None:
    change(saved / file, edit)
    with pytest.raises(ModelError, match=message) as raised:
        load(saved)
    assert str(saved) in str(raised.value)


@pytest.mark.parametrize("template", ["{{ bos_token }}", "<image><image>", "{% if"])
def test_template_that_drops_or_repeats_images_is_rejected(saved: Path, template: str) -> None:
    (saved / "chat_template.jinja").write_text(template)
    with pytest.raises(ModelError, match=re.escape(str(saved))):
        load(saved)


@pytest.mark.parametrize("name", ["../model.safetensors", "/tmp/model.safetensors", "..", ""])
def test_index_must_not_refer_to_files_outside_its_directory(saved: Path, name: str) -> None:
    tensors = load_file(saved / "model.safetensors")
    (saved / "model.safetensors").unlink()
    save_file(tensors, saved.parent / "model.safetensors", metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, name)}
    (saved / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="which is not a file in its directory"):
        load(saved)


@pytest.mark.parametrize("content", ["{}", "null", "[]", '{"weight_map": [1]}', "[" * 100_000])
def test_malformed_index_is_rejected(saved: Path, content: str) -> None:
    (saved / "model.safetensors").unlink()
    (saved / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ModelError, match=r"index\.json is not a valid weight index"):
        load(saved)


def test_code_next_to_a_tokenizer_is_never_run(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not run even if the user would confirm, because there is no prompt."""
    (saved / "evil.py").write_text(f"open({str(saved.parent / 'ran')!r}, 'w')\nclass Evil: pass\n")
    auto_map = {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    change(saved / "tokenizer_config.json", lambda c: c.update(auto_map=auto_map, tokenizer_class="Evil"))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(ModelError):
        load(saved)
    assert not (saved.parent / "ran").exists()


@pytest.mark.parametrize("change", [{"do_normalize": False}, {"size": {"height": 8, "width": 8}}, {"resample": 0}])
def test_preprocessing_cannot_be_overridden_in_a_call(
    tiny_processor: HoneybeeProcessor, change: dict[str, Any]
) -> None:
    image = Image.new("RGB", (9, 9))
    with pytest.raises(TypeError, match="cannot be overridden in a call"):
        tiny_processor(text="<image>", images=image, images_kwargs=change)


def test_code_in_the_model_card_runs(
    saved: Path, tiny_model: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    card = model_card(tiny_model.config, FACTS)
    assert "base_model:\n- openai/clip-vit-large-patch14" in card and "vqav2 60.0 %, gqa 40.0 %" in card
    code = card.split("```python\n")[1].split("```")[0]
    Image.new("RGB", (40, 30), "red").save(saved / "image.jpg")
    monkeypatch.chdir(saved)
    exec(code, {})
    assert capsys.readouterr().out


def test_packed_attention_without_a_pack_names_the_setting(tiny_model: Any) -> None:
    tiny_model.llm.set_attn_implementation(PACKED)
    ids = torch.tensor([[1, 70, 71]])
    with pytest.raises(ValueError, match=r"set train\.attention to sdpa"):
        tiny_model(input_ids=ids, attention_mask=torch.empty(1, 1, 0, 0), use_cache=False)
