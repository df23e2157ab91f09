"""Conversations with a model: streaming, several pictures, turns, failures."""

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from model.chat import Chat, ChatError, open_picture
from model.directory import ModelError
from pipelines.images import to_rgb


@pytest.fixture
def saved(tiny_model: Any, tiny_processor: Any, tmp_path: Path) -> Path:
    tiny_model.save_pretrained(tmp_path)
    tiny_processor.save_pretrained(tmp_path)
    return tmp_path


RED, BLUE = Image.new("RGB", (20, 20), "red"), Image.new("RGB", (30, 10), "blue")


def test_the_pieces_of_an_answer_are_what_generate_says(saved: Path, tiny_model: Any, tiny_processor: Any) -> None:
    RED.save(saved / "red.png")
    talk = Chat.load(saved, device="cpu")
    pieces = list(talk.ask("What are these?", [saved / "red.png", BLUE], max_new_tokens=12))
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


def test_later_turns_see_earlier_ones(saved: Path) -> None:
    talk = Chat.load(saved, device="cpu")
    first = "".join(talk.ask("What is it?", [RED], max_new_tokens=6))
    second = "".join(talk.ask("And this?", [BLUE], max_new_tokens=6))
    assert [message["role"] for message in talk.messages] == ["user", "assistant"] * 2
    assert talk.messages[1]["content"][0]["text"] == first.strip()
    again = Chat(talk.model, talk.processor)
    again.messages = talk.messages[:2]
    assert "".join(again.ask("And this?", [BLUE], max_new_tokens=6)) == second


def test_a_reader_may_stop_early(saved: Path) -> None:
    talk = Chat.load(saved, device="cpu")
    letter, space = talk.processor.tokenizer.convert_tokens_to_ids(["a", "Ġ"])
    steps: list[int] = []

    def endless(module: Any, args: Any, logits: torch.Tensor) -> torch.Tensor:
        steps.append(1)
        return torch.nn.functional.one_hot(torch.tensor([[space if len(steps) % 2 else letter]]), 320).float()

    talk.model.llm.lm_head.register_forward_hook(endless)
    answer = talk.ask("Tell me a long story", max_new_tokens=400)
    assert [next(answer), next(answer)] == ["a", " "]
    answer.close()
    assert len(steps) < 400
    assert talk.messages[1]["content"] == [{"type": "text", "text": "a"}]


def test_what_goes_wrong_reaches_the_reader_and_leaves_no_turn(saved: Path) -> None:
    talk = Chat.load(saved, device="cpu")
    with pytest.raises(ChatError, match="the question holds <image>"):
        talk.ask("Look: <image>")
    with pytest.raises(ChatError, match="the question is empty"):
        talk.ask(" \n", [RED])
    with pytest.raises(ChatError, match="is no image that can be read"):
        talk.ask("And this?", [saved / "config.json"])
    with pytest.raises(ChatError, match="the model's context 512"):
        talk.ask("Why? " * 200)
    talk.processor.num_image_tokens = 3  # the model wants 4
    with pytest.raises(ValueError, match="found 3 image tokens for 1 images"):
        list(talk.ask("What is it?", [RED]))
    assert talk.messages == []


def test_an_answer_ends_where_the_context_does(saved: Path) -> None:
    talk = Chat.load(saved, device="cpu")
    letter = talk.processor.tokenizer.convert_tokens_to_ids("a")
    talk.model.llm.lm_head.register_forward_hook(
        lambda module, args, logits: torch.nn.functional.one_hot(torch.tensor([[letter]]), 320).float()
    )
    answer = "".join(talk.ask("Tell me a long story", max_new_tokens=5000))
    assert set(answer) == {"a"} and 400 < len(answer) < 512


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_a_picture_that_cannot_be_read_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad").write_bytes(content)
    for path in (tmp_path / "bad", tmp_path / "missing.png", tmp_path):
        with pytest.raises(ChatError, match=f"^{path} is no image that can be read: "):
            open_picture(path)
    for url in ("http://127.0.0.1/a.png", "data:image/png;base64,AAAA"):
        with pytest.raises(ChatError, match="images are not fetched from addresses"):
            open_picture(url)


def test_a_picture_is_shown_as_a_person_sees_it(tiny_processor: Any, tmp_path: Path) -> None:
    half = Image.new("RGB", (64, 64), "red")
    half.paste("blue", (0, 0, 64, 32))  # the upper half
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by 90 degrees, clockwise
    half.save(tmp_path / "turned.jpg", exif=turned, quality=95)
    half.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    half.convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "palette.png")
    deep = np.full((64, 64), 30000, dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    seen = {path.name: tiny_processor.preprocess([open_picture(path)])[0] for path in tmp_path.iterdir()}
    upright = tiny_processor.preprocess([half])[0]
    assert (seen["turned.jpg"] - upright.rot90(-1, (1, 2))).abs().mean() < 0.1
    for name in ("cmyk.jpg", "palette.png"):
        assert (seen[name] - upright).abs().mean() < 0.1
    grey = tiny_processor.preprocess([Image.new("RGB", (64, 64), (116,) * 3)])[0]
    assert (seen["deep.png"] - grey).abs().max() < 0.02  # 30000 / 257
    buffer = io.BytesIO()
    to_rgb(open_picture(tmp_path / "turned.jpg")).save(buffer, "PNG")
    assert torch.equal(tiny_processor.preprocess([Image.open(buffer)])[0], seen["turned.jpg"])


def test_a_directory_that_holds_no_model_says_so(saved: Path, tiny_backbones: Path, tmp_path: Path) -> None:
    cases = {"empty": "no config.json", "torn": "is no JSON", "light": "no weights", "cut": "cannot be loaded"}
    cases_at = tmp_path.with_name(f"{tmp_path.name}-cases")
    for name in cases:
        shutil.copytree(saved, cases_at / name)
    (cases_at / "empty/config.json").unlink()
    (cases_at / "torn/config.json").write_text('{"model_type": ')
    (cases_at / "light/model.safetensors").unlink()
    (cases_at / "cut/model.safetensors").write_bytes((saved / "model.safetensors").read_bytes()[:5000])
    for name, said in cases.items():
        with pytest.raises(ModelError, match=said) as raised:
            Chat.load(cases_at / name)
        assert str(cases_at / name) in str(raised.value)
    with pytest.raises(ModelError, match="the type 'llama', not 'honeybee'"):
        Chat.load(tiny_backbones / "llm")
