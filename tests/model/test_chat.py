"""Conversations with a model: streaming, several pictures, turns, failures."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from model.chat import Chat, chat


@pytest.fixture
def saved(tiny_model: Any, tiny_processor: Any, tmp_path: Path) -> Path:
    tiny_model.save_pretrained(tmp_path)
    tiny_processor.save_pretrained(tmp_path)
    return tmp_path


RED, BLUE = Image.new("RGB", (20, 20), "red"), Image.new("RGB", (30, 10), "blue")


def test_the_pieces_of_an_answer_are_what_generate_says(saved: Path, tiny_model: Any, tiny_processor: Any) -> None:
    RED.save(saved / "red.png")
    pieces = list(chat(saved, [saved / "red.png", BLUE], "What are these?", device="cpu", max_new_tokens=12))
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
    answer: Any = talk.ask("Tell me a long story", max_new_tokens=400)
    assert [next(answer), next(answer)] == ["a ", "a "]
    answer.close()
    assert len(steps) < 400
    assert talk.messages[1]["content"] == [{"type": "text", "text": "a a"}]


def test_what_goes_wrong_reaches_the_reader_and_leaves_no_turn(saved: Path) -> None:
    talk = Chat.load(saved, device="cpu")
    with pytest.raises(ValueError, match="the question holds <image>"):
        talk.ask("Look: <image>")
    with pytest.raises(ValueError, match="is no image that can be read"):
        talk.ask("And this?", [saved / "config.json"])
    talk.processor.num_image_tokens = 3  # the model wants 4
    with pytest.raises(ValueError, match="found 3 image tokens for 1 images"):
        list(talk.ask("What is it?", [RED]))
    assert talk.messages == []
