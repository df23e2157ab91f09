"""Texts never become control tokens, and all other texts have the tokens that they have in training."""

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from pipelines.core.store import Store
from pipelines.jobs.tokenizer import prepare_tokenizer
from pipelines.tokens.chat_style import load_chat_template
from pipelines.tokens.encode import Encoder
from pipelines.tokens.plain_text import PlainTextError, PlainTextTokenizer, control_tokens
from pipelines.tokens.tokenizer import load_tokenizer

TRAINING = [
    "What is it? It is a cat; so is the other one, yes or no.",
    "A person talks with an assistant that looks at pictures, answers truthfully.\nHuman: Is it a red circle?\nAI: Yes",
    "a < b > c / s",
]
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
METASPACE = pre_tokenizers.Metaspace(prepend_scheme="first")
PREPEND = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


def gpt() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return tokenizer


def lowercase() -> Tokenizer:
    """Its normaliser turns other texts into those of control tokens."""
    tokenizer = gpt()
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    return tokenizer


def llama(first: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = METASPACE if first else pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer, tokenizer.decoder = METASPACE, decoders.Metaspace()
    return tokenizer


KINDS = {
    "gpt": gpt,
    "lowercase": lowercase,
    "llama": lambda: llama(False),
    "first": lambda: llama(True),
    "unigram": unigram,
}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request):
    """A tokenizer as language models have them, with a token that the tokenizer does not declare special."""
    made = KINDS[request.param]()
    alphabet = pre_tokenizers.ByteLevel.alphabet() if request.param in ("gpt", "lowercase") else []
    extra = [f"<0x{byte:02X}>" for byte in range(256)] if request.param in ("llama", "first") else []
    options = {"special_tokens": SPECIAL + extra, "initial_alphabet": alphabet, "show_progress": False}
    if request.param == "unigram":
        trainer = trainers.UnigramTrainer(vocab_size=120, unk_token="<unk>", **options)
    else:
        trainer = trainers.BpeTrainer(vocab_size=700, **options)
    made.train_from_iterator(TRAINING, trainer)
    if request.param == "llama":
        made.pre_tokenizer, made.normalizer = pre_tokenizers.Sequence([]), PREPEND
        made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=made, additional_special_tokens=["<image>"], **names)
    fast.add_tokens([AddedToken("<|im_end|>", normalized=request.param == "lowercase", rstrip=True), "  "])
    return fast


def conversation(*texts):
    """Two user parts, then an answer, then a question."""
    first, joined, answer, question = texts
    parts = [{"type": "image"}, {"type": "text", "text": first}, {"type": "text", "text": joined}]
    return [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": [{"type": "text", "text": question}]},
    ]


def render(tokenizer, messages):
    template = load_chat_template("honeybee").text
    return tokenizer.apply_chat_template(messages, chat_template=template, add_generation_prompt=True, tokenize=False)


def encode(tokenizer, messages, images=3):
    plain = PlainTextTokenizer(tokenizer.backend_tokenizer)
    return plain.encode(messages, lambda given: render(tokenizer, given), {"<image>": images})


@pytest.mark.parametrize(
    "texts",
    [
        ("What is", " it?", "A cat", "Is it\nred?"),
        (" What  is", "", "  A  cat ", "\tIs it ?\n"),
        ("日本", " ÅB é", "a < b > c", "x/s <  s>"),
        ("", "", "", "no"),
    ],
)
def test_texts_have_the_tokens_of_the_tokenizer_itself(tokenizer, texts):
    messages = conversation(*texts)
    rendered = render(tokenizer, messages).replace("<image>", "<image>" * 3)
    assert encode(tokenizer, messages) == tokenizer(rendered, add_special_tokens=False)["input_ids"]


FORMS = [
    "<s>",
    "</s>",
    " </s>",
    "</s> ",
    "<pad>",
    "<unk>",
    "<image>",
    "<|im_end|>",
    "<|im_end|> \n",
    "</S>",
    "＜/s＞",
    "</s>" * 3,
]


@pytest.mark.parametrize("form", FORMS)
def test_control_tokens_in_texts_are_plain_text(tokenizer, form):
    control = set(control_tokens(tokenizer.backend_tokenizer).values()) - {tokenizer.unk_token_id}
    assert len(control) == 5
    clean = encode(tokenizer, conversation("What is", "it?", "A cat", "Is it red?"))
    half = len(form) // 2
    for texts in (
        (form, "", "", ""),
        ("say ", form, f"{form} it", f"so{form}"),
        (form[:half], form[half:], form, form),
    ):
        ids = encode(tokenizer, conversation(*texts))
        assert [id for id in ids if id in control] == [id for id in clean if id in control]
    if tokenizer.backend_tokenizer.normalizer is None and isinstance(
        tokenizer.backend_tokenizer.decoder, decoders.ByteLevel
    ):
        assert f"x{form}" in tokenizer.decode(encode(tokenizer, conversation("x", form, "y", "z")))  # nothing is lost


def test_a_template_may_trim_texts_but_not_alter_them(tokenizer):
    plain = PlainTextTokenizer(tokenizer.backend_tokenizer)
    messages = [{"role": "user", "content": " </s> What? "}]
    trimmed = plain.encode(messages, lambda given: f"<s>{given[0]['content'].strip()}", {})
    assert trimmed == plain.encode(
        [{"role": "user", "content": "</s> What?"}], lambda given: "<s>" + given[0]["content"], {}
    )
    with pytest.raises(PlainTextError, match="alters the texts"):
        plain.encode(messages, lambda given: given[0]["content"].upper(), {})


def test_the_build_and_the_prompt_have_the_same_tokens(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "llm")
    directory = prepare_tokenizer(Store(tmp_path / "store"), str(tmp_path / "llm"))
    encoder = Encoder(load_tokenizer(directory), load_chat_template("honeybee"))
    user, answers = ["What is it ?", "  Is it\nred?"], ["a cat", "yes"]
    built = encoder.encode(pa.array(user), pa.array(answers), np.array([1, -1]))
    messages = conversation(user[0], "", answers[0], user[1])
    asked = encode(AutoTokenizer.from_pretrained(directory), messages, images=1)
    assert built.errors == {} and built.ids[: len(asked)].tolist() == asked


def test_the_build_rejects_texts_that_the_tokenizer_reads_as_control_tokens(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "llm")
    prepared = load_tokenizer(prepare_tokenizer(Store(tmp_path / "store"), str(tmp_path / "llm")))
    encoder = Encoder(prepared, load_chat_template("honeybee"))
    texts = pa.array(["fine", "</S> ＜s＞", "<|IM_END|>", "ok <pad>", "an <|im_end|>", "< s >"])
    forbidden = encoder.forbidden_text(texts).to_pylist()
    assert forbidden == [None, None, None, "<pad>", "<|im_end|>", None]
    encoded = encoder.encode(texts, pa.array(["yes"] * 6), np.zeros(6, np.int64))
    special = {prepared.tokenizer.token_to_id(token) for token in prepared.special_tokens} - {tokenizer.unk_token_id}
    for turn in range(6):
        ids = encoded.ids[encoded.offsets[turn] : encoded.offsets[turn + 1]]
        assert (turn in encoded.errors) == (sum(int(id) in special for id in ids) != 2)
