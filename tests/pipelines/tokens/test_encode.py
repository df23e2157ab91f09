"""Token ids and loss masks of turns, compared with transformers, and checks of chat styles."""

import re

import numpy as np
import pyarrow as pa
import pytest
from transformers import AutoTokenizer

from pipelines.tokens import chat_style
from pipelines.tokens.chat_style import ChatStyleError, load_chat_template
from pipelines.tokens.encode import Encoder
from pipelines.tokens.tokenizer import load_tokenizer

DIALOGUE = ["What is it?", "A cät 🐱", "Is it\nblack?", "yes"]


@pytest.fixture(scope="module")
def prepared(tokenizer_dir):
    return load_tokenizer(tokenizer_dir)


def encode(encoder, texts, images):
    """Encodes one conversation."""
    begins = np.array([images, *[-1] * (len(texts) // 2 - 1)])
    return encoder.encode(pa.array(texts[0::2]), pa.array(texts[1::2]), begins)


def messages(texts, images=1):
    """Builds messages as passed at inference: images are separate content parts, in place of each `<image>`."""
    found = []
    for i, text in enumerate(texts):
        parts = [{"type": "image"}] * (0 if i else images)
        for piece in re.split("(<image>)", text):
            if piece == "<image>":
                parts.append({"type": "image"})
            elif piece:
                parts.append({"type": "text", "text": piece})
        found.append({"role": ("user", "assistant")[i % 2], "content": parts})
    return found


def test_supervised_tokens_are_the_answers_and_their_eos_tokens(prepared):
    encoded = encode(Encoder(prepared, load_chat_template("honeybee")), DIALOGUE, 1)
    text = prepared.tokenizer.decode(encoded.ids[encoded.loss_mask()].tolist(), skip_special_tokens=False)
    assert text == " A cät 🐱</s> yes</s>"
    assert encoded.errors == {}
    assert (encoded.ids == prepared.image_token_id).sum() == 1


def test_tokens_equal_those_of_the_same_chat_template_in_transformers(prepared, tokenizer_dir):
    encoder = Encoder(prepared, load_chat_template("honeybee"))
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    inline = ["<image>Is <image> as large as<image>?", "no", "<image><image>And this?", "so is it", "<image>", "it"]
    for texts, images in (
        (DIALOGUE, 1),
        (DIALOGUE[:2], 0),
        (DIALOGUE, 3),
        (inline, 0),
        (inline, 2),
        (["Is it <image> ?", "yes"], 0),
    ):
        encoded = encode(encoder, texts, images)
        text = tokenizer.apply_chat_template(
            messages(texts, images), chat_template=encoder.style.template.text, tokenize=False
        )
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == encoded.ids.tolist()
        assert encoded.errors == {}


def test_a_message_may_be_a_plain_string(prepared, tokenizer_dir):
    for style in ("honeybee", "caption"):
        encoder = Encoder(prepared, load_chat_template(style))
        encoded = encode(encoder, DIALOGUE, 0)
        plain = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(DIALOGUE)]
        text = AutoTokenizer.from_pretrained(tokenizer_dir).apply_chat_template(
            plain, chat_template=encoder.style.template.text, tokenize=False
        )
        assert prepared.tokenizer.encode(text, add_special_tokens=False).ids == encoded.ids.tolist()


def test_the_prompt_at_inference_is_a_prefix_of_the_training_tokens(prepared, tokenizer_dir):
    encoder = Encoder(prepared, load_chat_template("honeybee"))
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    encoded = encode(encoder, DIALOGUE, 1)
    for turns in (1, 2):
        prompt = tokenizer.apply_chat_template(
            messages(DIALOGUE[: 2 * turns - 1]),
            chat_template=encoder.style.template.text,
            tokenize=False,
            add_generation_prompt=True,
        )
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        assert encoded.ids[: len(ids)].tolist() == ids
        assert encoded.loss_mask()[len(ids)] and not encoded.loss_mask()[len(ids) - 1]


def test_captions_have_no_prompt(prepared):
    encoded = encode(Encoder(prepared, load_chat_template("caption")), ["", "a red circle"], 1)
    text = prepared.tokenizer.decode(encoded.ids.tolist(), skip_special_tokens=False)
    assert text == "<s><image>a red circle</s>"


def test_turns_end_with_the_eos_token(prepared):
    encoded = encode(Encoder(prepared, load_chat_template("honeybee")), DIALOGUE, 1)
    eos = prepared.tokenizer.token_to_id("</s>")
    assert [encoded.ids[end - 1] for end in encoded.offsets[1:]] == [eos, eos]


def test_special_tokens_in_text_are_found(prepared):
    encoder = Encoder(prepared, load_chat_template("honeybee"))
    texts = pa.array(["look at <image> here", "fine", "the end</s> or <image>", "a < b > c", "\ue000"])
    assert encoder.forbidden_text(texts).to_pylist() == ["<image>", None, "</s>", None, "\ue000"]


def test_role_markers_in_text_are_found(prepared):
    texts = pa.array(["no\nAI: yes", "so\nHuman: why?", "AI: a short name", "the AI: good", "Human:\nAI"])
    found = ["\nAI:", "\nHuman:", None, None, None]
    assert Encoder(prepared, load_chat_template("honeybee")).forbidden_text(texts).to_pylist() == found
    assert Encoder(prepared, load_chat_template("caption")).forbidden_text(texts).to_pylist() == [None] * 5


def test_a_style_that_alters_texts_is_rejected(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(chat_style, "ROOT", tmp_path)
    (tmp_path / "chat").mkdir()
    style = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}"
        "{{ m.content[0].text CHANGE }}{{ eos_token }}{% endgeneration %}{% else %}{% for part in m.content %}"
        "{{ part.text or '<image>' }}{% endfor %}{% endif %}{% endfor %}"
    )
    (tmp_path / "chat" / "good.jinja").write_text(style.replace("CHANGE", ""))
    (tmp_path / "chat" / "upper.jinja").write_text(style.replace("CHANGE", "| upper"))
    (tmp_path / "chat" / "trim.jinja").write_text(style.replace("CHANGE", "| trim"))
    (tmp_path / "chat" / "unmasked.jinja").write_text("{% for m in messages %}{{ m.content[-1].text }}{% endfor %}")
    first = style.replace("CHANGE", "").replace("m.content %}", "m.content|sort(attribute='type') %}")
    (tmp_path / "chat" / "first.jinja").write_text(first)  # moves all images before the text
    assert encode(Encoder(prepared, load_chat_template("good")), ["a", "b"], 0).errors == {}
    for name in ("upper", "trim", "unmasked", "first"):
        with pytest.raises(ChatStyleError, match=name):
            Encoder(prepared, load_chat_template(name))
    with pytest.raises(ChatStyleError, match=r"no chat style 'none'.*good"):
        Encoder(prepared, load_chat_template("none"))


def test_a_mask_that_does_not_decode_to_the_answers_is_reported(prepared):
    encoder = Encoder(prepared, load_chat_template("caption"))
    encoded = encode(encoder, ["", "two <image> tokens"], 1)
    assert encoded.errors == {0: "2 image tokens for 1 images"}
