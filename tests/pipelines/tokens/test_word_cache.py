"""Tokenising word by word gives the tokens of the complete text, for tokenizers like those of current models."""

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from pipelines.core.store import Store
from pipelines.jobs.tokenizer import prepare_tokenizer
from pipelines.tokens import word_cache
from pipelines.tokens.tokenizer import load_tokenizer
from pipelines.tokens.word_cache import WordTokenizer

TEXTS = [
    "What colour is the red circle? It's red, isn't it? 12 of 345 (twelve) are \"here\".",
    "Is there a 3rd dog?\nA. yes\nB. no\nReply with the letter. In 2014 the U.S. had $3.50 -- or so… naïve café 中文",
] * 9
# The pre-tokenizer pattern of Llama 3 and Qwen.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def gpt2():
    return pre_tokenizers.ByteLevel(add_prefix_space=False), None, decoders.ByteLevel()


def llama3():
    split = pre_tokenizers.Split(Regex(_LLAMA3), "isolated")
    cut = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    return cut, normalizers.NFC(), decoders.ByteLevel()


def metaspace():
    """Returns the parts of a SentencePiece tokenizer in its newer conversion."""
    return pre_tokenizers.Metaspace(prepend_scheme="first"), None, decoders.Metaspace()


def prepend():
    """Returns the parts of a SentencePiece tokenizer as converted for Llama 2 and Vicuna: there is no pre-tokenizer,
    and the normalizer prepends a space to every piece."""
    normal = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return None, normal, decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])


def prepared_as(kind, folder, over_spaces=False):
    cut, normal, decoder = kind()
    tokenizer = Tokenizer(models.BPE(byte_fallback=True))
    tokenizer.normalizer, tokenizer.decoder = normal, decoder
    # Without a pre-tokenizer, learned tokens may span spaces, which those of language models do not.
    learned_with = cut or (None if over_spaces else pre_tokenizers.Metaspace(prepend_scheme="always"))
    if learned_with is not None:
        tokenizer.pre_tokenizer = learned_with
    alphabet = pre_tokenizers.ByteLevel.alphabet() if kind in (gpt2, llama3) else []
    specials = ["<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    if cut is None and learned_with is not None:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    return load_tokenizer(prepare_tokenizer(Store(folder / "store"), str(folder)))


@pytest.fixture(scope="module", params=[gpt2, llama3, metaspace, prepend], ids=lambda kind: kind.__name__)
def prepared(request, tmp_path_factory):
    return prepared_as(request.param, tmp_path_factory.mktemp(request.param.__name__))


def whole(prepared, text):
    ids = prepared.tokenizer.encode(prepared.eos_token + text, add_special_tokens=False).ids
    return ids[1:]


def by_words(tokenizer, texts):
    """Returns the tokens of each text, or None if it cannot be split into words."""
    column = pa.array(texts, pa.string())
    can = tokenizer.can_encode(column)
    cut = tokenizer.encode(column.filter(pa.array(can)))
    spans = iter(zip(cut.offsets[:-1], cut.offsets[1:], strict=True))
    return [_tokens(cut, next(spans)) if possible else None for possible in can]


def _tokens(cut, span):
    return cut.ids[cut.ends[span[0]] : cut.ends[span[1]]].tolist()


def test_these_tokenizers_qualify(prepared):
    assert WordTokenizer(prepared).is_exact


CHARACTERS = st.sampled_from(
    [*"aZé7 .,?'\"-_()<>\n\t\r$中", "  ", " \n", "\u00a0", "\u0301", "😀", "\x1f", "’", "Ġ", "▁"]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(CHARACTERS, max_size=14).map("".join), min_size=1, max_size=8))
def test_tokens_by_word_equal_those_of_the_complete_text(prepared, texts):
    for text, ids in zip(texts, by_words(WordTokenizer(prepared), texts), strict=True):
        assert ids is None or ids == whole(prepared, text), text


def test_ordinary_texts_are_tokenised_by_word(prepared):
    texts = [f"\nHuman: {text}\nAI: yes</s>" for text in TEXTS]
    assert by_words(WordTokenizer(prepared), texts) == [whole(prepared, text) for text in texts]


def test_the_word_cache_can_be_cleared(prepared, monkeypatch):
    tokenizer = WordTokenizer(prepared)
    first = by_words(tokenizer, TEXTS)
    monkeypatch.setattr(word_cache, "_MOST_KNOWN", 3)
    assert by_words(tokenizer, TEXTS) == first


def test_a_vocabulary_that_spans_spaces_is_detected(tmp_path):
    assert not WordTokenizer(prepared_as(prepend, tmp_path, over_spaces=True)).is_exact


def test_an_added_token_with_a_space_is_detected(tmp_path):
    prepared = prepared_as(gpt2, tmp_path)
    prepared.tokenizer.add_tokens(["red circle"])
    assert not WordTokenizer(prepared).is_exact


def test_unigram_does_not_qualify(tmp_path):
    # Its choice between two equally likely segmentations of "====" depends on the text before the word.
    unigram = Tokenizer(models.Unigram([("<unk>", 0.0), ("▁", -1.0), ("=", -2.0), ("===", -3.0), ("a", -2.0)], 0))
    unigram.pre_tokenizer, unigram.decoder = pre_tokenizers.Metaspace(split=False), decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=unigram, bos_token="<s>", eos_token="</s>")
    tokenizer.save_pretrained(tmp_path)
    assert not WordTokenizer(load_tokenizer(prepare_tokenizer(Store(tmp_path / "store"), str(tmp_path)))).is_exact


def test_saved_truncation_padding_and_dropout_are_removed(tmp_path):
    prepared_as(gpt2, tmp_path)
    saved = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    saved.enable_truncation(16)
    saved.enable_padding(length=40)
    saved.model.dropout = 0.5
    saved.save(str(tmp_path / "tokenizer.json"))
    prepared = load_tokenizer(prepare_tokenizer(Store(tmp_path / "again"), str(tmp_path)))
    lengths = {len(prepared.tokenizer.encode(TEXTS[0], add_special_tokens=False).ids) for _ in range(9)}
    assert len(lengths) == 1 and lengths.pop() > 16
