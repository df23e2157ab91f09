"""Tests of the embedding table: vectors depend only on the text, unusual texts, and unusable models."""

import random

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipelines.dedup.embedder import EmbedderError
from pipelines.dedup.embeddings import Embeddings, embed_texts, embedder_fingerprint

MODEL = "all-MiniLM-L6-v2"
WORDS = [
    "how",
    "many",
    "red",
    "blue",
    "cups",
    "stand",
    "on",
    "the",
    "left",
    "wooden",
    "table",
    "near",
    "a",
    "window",
    "while",
    "it",
    "rains",
]


def sentences(count=120, longest=10, seed=0):
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, longest))) for _ in range(count)]


@pytest.fixture(scope="module")
def table():
    return embed_texts(sentences(), MODEL)


def test_table_is_sorted_distinct_and_normalised(table):
    texts = table["text"].to_pylist()
    assert texts == sorted(set(sentences()))
    assert table.schema.field("vector").type == pa.list_(pa.float16(), 384)
    norms = np.linalg.norm(Embeddings(table).vectors(texts), axis=1)
    assert np.abs(norms - 1).max() < 1e-3


def test_a_vector_does_not_depend_on_other_texts_their_order_or_threads(table):
    threads = torch.get_num_threads()
    full = Embeddings(table)
    try:
        for seed, number in ((1, 1), (2, 2)):
            torch.set_num_threads(number)
            some = random.Random(seed).sample(sentences(), 40)
            separate = Embeddings(embed_texts(reversed(some + some[:5]), MODEL))
            assert np.array_equal(separate.vectors(some), full.vectors(some))
    finally:
        torch.set_num_threads(threads)


def test_cold_and_warm_tables_are_equal(table):
    texts = sentences()
    half = embed_texts(texts[::2], MODEL)
    assert embed_texts(texts, MODEL, known=half).equals(table)
    assert embed_texts(texts[::2], MODEL, known=table).equals(half)


def test_agrees_with_sentence_transformers(table):
    from sentence_transformers import SentenceTransformer

    from pipelines.dedup.embeddings import embedder_path

    texts = table["text"].to_pylist()[:40]
    expected = SentenceTransformer(str(embedder_path(MODEL)), device="cpu").encode(texts)
    found = Embeddings(table).vectors(texts)
    assert np.einsum("nd,nd->n", expected, found).min() > 0.9999


def test_unusual_texts_have_vectors():
    texts = ["", " ", "😀😀", "Wie viele Tassen stehen da?", "猫は何匹ですか", "word " * 10_000, "\x00\n", "the"]
    found = Embeddings(embed_texts(texts, MODEL))
    norms = np.linalg.norm(found.vectors(texts), axis=1)
    assert np.abs(norms - 1).max() < 1e-3


def test_a_truncated_text_is_not_known():
    texts = ["cup " * 300, "cup " * 9000, "cup " * 254]
    vectors, known = Embeddings(embed_texts(texts, MODEL)).look_up(texts)
    assert np.array_equal(vectors[0], vectors[1])
    assert known.tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("What color is the mousepad?", True),
        ("Is it 12:30 or 5°C?", True),
        ("😀", False),  # an unknown token
        ("café", False),  # the tokenizer strips the accent
        ("猫は何匹ですか", False),  # single characters
        ("고양이가 몇 마리 있나요", False),
        ("मेज पर कितने कप हैं", False),  # stripped vowel signs
        ("ছবিতে কয়টি বিড়াল আছে", False),
        ("Сколько чашек на столе?", False),
        ("a [SEP] b", False),  # special tokens in a text
        ("a" * 101, False),  # longer than the longest word
    ],
)
def test_known_texts(text, known):
    assert Embeddings(embed_texts([text], MODEL)).look_up([text])[1].tolist() == [known]


def test_an_empty_input_gives_an_empty_table():
    assert embed_texts([], MODEL).num_rows == 0


def test_vectors_are_returned_in_the_requested_order_from_a_table_in_several_batches(table):
    parts = pa.concat_tables([table.slice(50), table.slice(0, 50)])
    texts = sentences()[::-1]
    assert np.array_equal(Embeddings(parts).vectors(texts), Embeddings(table).vectors(texts))


def test_a_missing_text_is_named(table):
    with pytest.raises(KeyError, match="never seen"):
        Embeddings(table).vectors(["never seen"])


def test_a_missing_model_is_an_error(tmp_path):
    for model in (str(tmp_path / "nowhere"), str(tmp_path), "all-minilm"):
        with pytest.raises(EmbedderError, match=r"modules\.json"):
            embedder_fingerprint(model)
        with pytest.raises(EmbedderError, match=r"modules\.json"):
            embed_texts([], model)


def test_known_vectors_of_a_different_dimension_are_refused():
    other = pa.table({"text": ["cup"], "known": [True], "vector": pa.array([[0.0, 1.0]], pa.list_(pa.float16(), 2))})
    with pytest.raises(EmbedderError, match="2 dimensions"):
        embed_texts(["plate"], MODEL, known=other)


def test_the_fingerprint_depends_on_the_model_files(tmp_path):
    (tmp_path / "modules.json").write_text("[]")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    first = embedder_fingerprint(str(tmp_path))
    assert first != embedder_fingerprint(MODEL)
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    assert embedder_fingerprint(str(tmp_path)) != first
