"""Fixtures: a small byte-level tokenizer, built like that of a language model, and a small store."""

from pathlib import Path

import pytest
from support.shard_world import make_world
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from pipelines.core.store import Store
from pipelines.jobs.tokenizer import prepare_tokenizer


@pytest.fixture(scope="session")
def llm_dir(tmp_path_factory) -> Path:
    """A directory with a tokenizer, laid out like a language model on a hub."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(["Human: what colour is the red circle? AI: yes, no, the picture shows it."] * 9, trainer)
    out = tmp_path_factory.mktemp("llm")
    PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>").save_pretrained(out)
    return out


@pytest.fixture(scope="session")
def tokenizer_dir(llm_dir, tmp_path_factory) -> Path:
    return prepare_tokenizer(Store(tmp_path_factory.mktemp("store")), str(llm_dir))


@pytest.fixture
def world(tmp_path, tokenizer_dir) -> dict:
    """Two datasets of examples in the store's layout, their images, and the arguments of build_shards."""
    return make_world(tmp_path, tokenizer_dir)
