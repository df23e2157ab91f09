import pytest
from transformers import AutoTokenizer

from pipelines import encode
from pipelines.encode import ChatStyleError, Encoder
from pipelines.tokenizer import load_tokenizer

DIALOGUE = ["What is it?", "A cät 🐱", "Is it\nblack?", "yes"]


@pytest.fixture(scope="module")
def prepared(tokenizer_dir):
    return load_tokenizer(tokenizer_dir)


def messages(texts, images=1):
    parts = [[{"type": "text", "text": text}] for text in texts]
    parts[0] = [{"type": "image"}] * images + parts[0]
    return [{"role": ("user", "assistant")[i % 2], "content": part} for i, part in enumerate(parts)]


def test_supervised_tokens_are_the_answers_and_their_end_tokens(prepared):
    [encoded] = Encoder(prepared, "honeybee").encode([DIALOGUE], [1])
    text = prepared.tokenizer.decode(encoded.input_ids[encoded.loss_mask].tolist(), skip_special_tokens=False)
    assert text == " A cät 🐱</s> yes</s>"
    assert encoded.error is None
    assert (encoded.input_ids == prepared.image_token_id).sum() == 1


def test_tokens_are_those_of_the_same_template_in_transformers(prepared, tokenizer_dir):
    encoder = Encoder(prepared, "honeybee")
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    for texts, images in ((DIALOGUE, 1), (DIALOGUE[:2], 0), (DIALOGUE, 3)):
        [encoded] = encoder.encode([texts], [images])
        text = tokenizer.apply_chat_template(messages(texts, images), chat_template=encoder.style.text, tokenize=False)
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == encoded.input_ids.tolist()


def test_a_message_may_be_a_plain_string(prepared, tokenizer_dir):
    for style in ("honeybee", "caption"):
        encoder = Encoder(prepared, style)
        [encoded] = encoder.encode([DIALOGUE], [0])
        plain = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(DIALOGUE)]
        text = AutoTokenizer.from_pretrained(tokenizer_dir).apply_chat_template(
            plain, chat_template=encoder.style.text, tokenize=False
        )
        assert prepared.tokenizer.encode(text, add_special_tokens=False).ids == encoded.input_ids.tolist()


def test_the_prompt_at_inference_is_a_prefix_of_the_training_tokens(prepared, tokenizer_dir):
    encoder = Encoder(prepared, "honeybee")
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    [encoded] = encoder.encode([DIALOGUE], [1])
    for turns in (1, 2):
        prompt = tokenizer.apply_chat_template(
            messages(DIALOGUE[: 2 * turns - 1]),
            chat_template=encoder.style.text,
            tokenize=False,
            add_generation_prompt=True,
        )
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        assert encoded.input_ids[: len(ids)].tolist() == ids
        assert encoded.loss_mask[len(ids)] and not encoded.loss_mask[len(ids) - 1]


def test_captions_have_no_prompt(prepared):
    [encoded] = Encoder(prepared, "caption").encode([["", "a red circle"]], [1])
    text = prepared.tokenizer.decode(encoded.input_ids.tolist(), skip_special_tokens=False)
    assert text == "<s><image>a red circle</s>"


def test_turn_ends_are_where_a_conversation_can_be_cut(prepared):
    [encoded] = Encoder(prepared, "honeybee").encode([DIALOGUE], [1])
    eos = prepared.tokenizer.token_to_id("</s>")
    assert [encoded.input_ids[end - 1] for end in encoded.turn_ends] == [eos, eos]
    assert encoded.turn_ends[-1] == len(encoded.input_ids)


def test_special_tokens_in_text_are_found(prepared):
    encoder = Encoder(prepared, "honeybee")
    assert encoder.forbidden_text("look at <image> here") == "<image>"
    assert encoder.forbidden_text("fine", "the end</s> or not") == "</s>"
    assert encoder.forbidden_text("a < b > c", "yes") is None


def test_a_style_that_changes_texts_is_refused(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(encode, "ROOT", tmp_path)
    (tmp_path / "chat").mkdir()
    style = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}"
        "{{ m.content[-1].text CHANGE }}{{ eos_token }}{% endgeneration %}{% else %}{{ m.content[-1].text }}{% endif %}"
        "{% endfor %}"
    )
    (tmp_path / "chat" / "good.jinja").write_text(style.replace("CHANGE", ""))
    (tmp_path / "chat" / "upper.jinja").write_text(style.replace("CHANGE", "| upper"))
    (tmp_path / "chat" / "trim.jinja").write_text(style.replace("CHANGE", "| trim"))
    (tmp_path / "chat" / "unmasked.jinja").write_text("{% for m in messages %}{{ m.content[-1].text }}{% endfor %}")
    Encoder(prepared, "good").encode([["a", "b"]], [0])
    for name in ("upper", "trim", "unmasked"):
        with pytest.raises(ChatStyleError, match=name):
            Encoder(prepared, name).encode([["a", "b"]], [0])
    with pytest.raises(ChatStyleError, match=r"no chat style 'none'.*good"):
        Encoder(prepared, "none")


def test_a_mask_that_does_not_decode_to_the_answers_is_reported(prepared):
    # This tokenizer's decoder joins bytes; a lone surrogate-like byte run cannot be told from its answer otherwise.
    encoder = Encoder(prepared, "caption")
    [encoded] = encoder.encode([["", "two <image> tokens"]], [1])
    assert encoded.error == "2 image tokens for 1 images"
