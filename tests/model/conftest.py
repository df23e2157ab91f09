"""Fixtures: a random CLIP and a random Llama, small enough to train for a few steps in a test."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from model import HoneybeeForConditionalGeneration, HoneybeeProcessor

SENTENCES = [
    "A person talks with an assistant that looks at pictures and answers truthfully.",
    "Human: Is there a red circle in the picture? AI: Yes",
    "Human: What colour is the square at the left? AI: blue",
    "A green triangle is above a yellow circle.",
]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Makes a byte-level BPE of about 320 tokens, so that any text survives a round trip."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<pad>", "<s>", "</s>", "<image>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=["<image>"],
        clean_up_tokenization_spaces=False,
    )


@pytest.fixture(scope="session")
def tiny_backbones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `vision/` (CLIPModel, 32 px, patch 8: 16 features of width 32; image processor) and `llm/`
    (LlamaForCausalLM, width 32, 2 layers; tokenizer with bos, eos, pad and `<image>`). Treat it as read-only."""
    directory = tmp_path_factory.mktemp("backbones")
    tokenizer = tiny_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        width: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
        clip = CLIPConfig(
            vision_config=CLIPVisionConfig(**width, num_hidden_layers=3, image_size=32, patch_size=8),
            text_config=CLIPTextConfig(
                **width,
                num_hidden_layers=1,
                vocab_size=len(tokenizer),
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
            ),
            projection_dim=16,
        )
        CLIPModel(clip).save_pretrained(directory / "vision")
        llama = LlamaConfig(
            **{**width, "num_attention_heads": 4},
            num_hidden_layers=2,
            num_key_value_heads=2,
            vocab_size=len(tokenizer),
            max_position_embeddings=512,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        LlamaForCausalLM(llama).save_pretrained(directory / "llm")
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32).save_pretrained(directory / "vision")
    tokenizer.save_pretrained(directory / "llm")
    return directory


@pytest.fixture
def tiny_model(tiny_backbones: Path) -> HoneybeeForConditionalGeneration:
    """A C-Abstractor model with M = 4 on the tiny backbones, new for every test, in evaluation mode."""
    return HoneybeeForConditionalGeneration.from_backbones(
        tiny_backbones / "vision",
        tiny_backbones / "llm",
        {"type": "c-abstractor", "num_tokens": 4, "settings": {"hidden_size": 32, "depth": 1}},
        tiny_backbones / "llm",
    )


@pytest.fixture(scope="session")
def tiny_processor(tiny_backbones: Path) -> HoneybeeProcessor:
    return HoneybeeProcessor.from_backbones(tiny_backbones / "vision", tiny_backbones / "llm", num_image_tokens=4)


@pytest.fixture(scope="session")
def plain_tokenizer(tiny_backbones: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of 320 tokens without `<image>`."""
    directory = tmp_path_factory.mktemp("tokenizer")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (tiny_backbones / "llm" / name).read_text().replace("<image>", "<other>")
        (directory / name).write_text(text)
    return directory
