"""Conversations with a model: streaming, multiple images, multiple turns, failures."""

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from model.check_directory import ModelError
from model.generation.chat import Chat, ChatError, load_image
from pipelines.images.decode import to_rgb


@pytest.fixture
def saved(tiny_model: Any, tiny_processor: Any, tmp_path: Path) -> Path:
    tiny_model.save_pretrained(tmp_path)
    tiny_processor.save_pretrained(tmp_path)
    return tmp_path


RED, BLUE = Image.new("RGB", (20, 20), "red"), Image.new("RGB", (30, 10), "blue")


def test_streamed_answer_matches_generate(saved: Path, tiny_model: Any, tiny_processor: Any) -> None:
    RED.save(saved / "red.png")
    chat = Chat.load(saved, device="cpu")
    pieces = list(chat.ask("What are these?", [saved / "red.png", BLUE], max_new_tokens=12))
    assert len(pieces) > 1
    content = [
        *({"type": "image", "image": image} for image in (RED, BLUE)),
        {"type": "text", "text": "What are these?"},
    ]
    inputs = tiny_processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    output = tiny_model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert "".join(pieces) == tiny_processor.tokenizer.decode(output, skip_special_tokens=True).lstrip()


def test_later_turns_depend_on_earlier_turns(saved: Path) -> None:
    chat = Chat.load(saved, device="cpu")
    first = "".join(chat.ask("What is it?", [RED], max_new_tokens=6))
    second = "".join(chat.ask("And this?", [BLUE], max_new_tokens=6))
    assert [message["role"] for message in chat.messages] == ["user", "assistant"] * 2
    assert chat.messages[1]["content"][0]["text"] == first.strip()
    again = Chat(chat.model, chat.processor)
    again.messages = chat.messages[:2]
    assert "".join(again.ask("And this?", [BLUE], max_new_tokens=6)) == second


def test_closing_the_stream_early_stops_generation(saved: Path) -> None:
    chat = Chat.load(saved, device="cpu")
    letter, space = chat.processor.tokenizer.convert_tokens_to_ids(["a", "Ġ"])
    steps: list[int] = []

    def endless(module: Any, args: Any, logits: torch.Tensor) -> torch.Tensor:
        steps.append(1)
        return torch.nn.functional.one_hot(torch.tensor([[space if len(steps) % 2 else letter]]), 320).float()

    chat.model.llm.lm_head.register_forward_hook(endless)
    answer = chat.ask("Tell me a long story", max_new_tokens=400)
    assert [next(answer), next(answer)] == ["a", " "]
    answer.close()
    assert len(steps) < 400
    assert chat.messages[1]["content"] == [{"type": "text", "text": "a"}]


def test_errors_are_raised_and_add_no_turn(saved: Path) -> None:
    chat = Chat.load(saved, device="cpu")
    with pytest.raises(ChatError, match="the question contains <image>"):
        chat.ask("Look: <image>")
    with pytest.raises(ChatError, match="the question is empty"):
        chat.ask(" \n", [RED])
    with pytest.raises(ChatError, match="cannot be read as an image"):
        chat.ask("And this?", [saved / "config.json"])
    with pytest.raises(ChatError, match="the model's context is 512 tokens"):
        chat.ask("Why? " * 200)
    chat.processor.num_image_tokens = 3  # the model expects 4
    with pytest.raises(ValueError, match="found 3 image tokens for 1 images"):
        list(chat.ask("What is it?", [RED]))
    assert chat.messages == []


def test_answer_is_limited_by_the_context(saved: Path) -> None:
    chat = Chat.load(saved, device="cpu")
    letter = chat.processor.tokenizer.convert_tokens_to_ids("a")
    chat.model.llm.lm_head.register_forward_hook(
        lambda module, args, logits: torch.nn.functional.one_hot(torch.tensor([[letter]]), 320).float()
    )
    answer = "".join(chat.ask("Tell me a long story", max_new_tokens=5000))
    assert set(answer) == {"a"} and 400 < len(answer) < 512


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_unreadable_image_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad").write_bytes(content)
    for path in (tmp_path / "bad", tmp_path / "missing.png", tmp_path):
        with pytest.raises(ChatError, match=f"^{path} cannot be read as an image: "):
            load_image(path)
    for url in ("http://127.0.0.1/a.png", "data:image/png;base64,AAAA"):
        with pytest.raises(ChatError, match="images are not fetched from URLs"):
            load_image(url)


def test_images_are_converted_to_upright_rgb(tiny_processor: Any, tmp_path: Path) -> None:
    half = Image.new("RGB", (64, 64), "red")
    half.paste("blue", (0, 0, 64, 32))  # the upper half
    rotated = Image.Exif()
    rotated[0x0112] = 6  # must be rotated by 90° clockwise
    half.save(tmp_path / "rotated.jpg", exif=rotated, quality=95)
    half.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    half.convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "palette.png")
    deep = np.full((64, 64), 30000, dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    seen = {path.name: tiny_processor.preprocess([load_image(path)])[0] for path in tmp_path.iterdir()}
    upright = tiny_processor.preprocess([half])[0]
    assert (seen["rotated.jpg"] - upright.rot90(-1, (1, 2))).abs().mean() < 0.1
    for name in ("cmyk.jpg", "palette.png"):
        assert (seen[name] - upright).abs().mean() < 0.1
    grey = tiny_processor.preprocess([Image.new("RGB", (64, 64), (116,) * 3)])[0]
    assert (seen["deep.png"] - grey).abs().max() < 0.02  # 30000 / 257
    buffer = io.BytesIO()
    to_rgb(load_image(tmp_path / "rotated.jpg")).save(buffer, "PNG")
    assert torch.equal(tiny_processor.preprocess([Image.open(buffer)])[0], seen["rotated.jpg"])


def test_directory_without_a_valid_model_is_rejected(saved: Path, tiny_backbones: Path, tmp_path: Path) -> None:
    cases = {
        "empty": "no config.json",
        "broken": "is not valid JSON",
        "weightless": "no weights",
        "truncated": "is not a complete safetensors file",
    }
    cases_at = tmp_path.with_name(f"{tmp_path.name}-cases")
    for name in cases:
        shutil.copytree(saved, cases_at / name)
    (cases_at / "empty/config.json").unlink()
    (cases_at / "broken/config.json").write_text('{"model_type": ')
    (cases_at / "weightless/model.safetensors").unlink()
    (cases_at / "truncated/model.safetensors").write_bytes((saved / "model.safetensors").read_bytes()[:5000])
    for name, message in cases.items():
        with pytest.raises(ModelError, match=message) as raised:
            Chat.load(cases_at / name)
        assert str(cases_at / name) in str(raised.value)
    with pytest.raises(ModelError, match="of type 'llama', not 'honeybee'"):
        Chat.load(tiny_backbones / "llm")
