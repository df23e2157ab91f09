"""A tokenizer that consists only of a SentencePiece `tokenizer.model`, like that of Vicuna on the hub."""

import json
from pathlib import Path

import pytest
import sentencepiece
from transformers import AutoTokenizer

from pipelines.core.store import Store
from pipelines.jobs.tokenizer import prepare_tokenizer

TEXTS = [f"Human: What stands at place {i}? AI: A red circle, and {7 * i} trees." for i in range(500)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("vicuna")
    (directory / "texts").write_text("\n".join(TEXTS))
    sentencepiece.SentencePieceTrainer.train(
        input=str(directory / "texts"),
        model_prefix=str(directory / "tokenizer"),
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        minloglevel=2,
        **{"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1},
    )
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    (directory / "texts").unlink()
    (directory / "tokenizer.vocab").unlink()
    return directory


def test_a_sentencepiece_model_is_converted_to_a_tokenizer_with_the_same_tokens(
    directory: Path, tmp_path: Path
) -> None:
    converted = AutoTokenizer.from_pretrained(prepare_tokenizer(Store(tmp_path), str(directory)))
    original = sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    for text in (*TEXTS[:20], "Zoë counts 3 bees 🐝"):
        assert converted.encode(text, add_special_tokens=False) == original.encode(text)
    assert converted.convert_tokens_to_ids("<image>") == original.get_piece_size()
    assert converted.encode("<image>", add_special_tokens=False) == [original.get_piece_size()]
