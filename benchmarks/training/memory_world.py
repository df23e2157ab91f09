"""What a memory measurement trains on: random backbones of a given size and shards of samples of maximum length."""

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from pipelines.core.files import file_sha256
from pipelines.core.integrity import write_manifest
from pipelines.schema import LENGTHS, SHARD
from pipelines.shards.manifest import FORMAT

WORDS = ["<unk>", "<pad>", "<s>", "</s>", "<image>", "word"]
IMAGE, WORD = 4, 5
SIDE = 224


def write_backbones(directory: Path, llm: dict[str, Any], vision: dict[str, Any], dtype: str) -> None:
    """Writes `vision/` and `llm/` with all files that a job needs. dtype: of the weights in the files."""
    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    encoder = CLIPVisionModel(CLIPVisionConfig(**vision, image_size=SIDE)).to(kind)
    encoder.save_pretrained(directory / "vision")
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SIDE).save_pretrained(directory / "vision")
    ids: dict[str, Any] = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}
    LlamaForCausalLM(LlamaConfig(**llm, **ids, max_position_embeddings=4096)).to(kind).save_pretrained(
        directory / "llm"
    )
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, extra_special_tokens=["<image>"], **special).save_pretrained(
        directory / "llm"
    )


def write_shards(directory: Path, tokenizer: Path, count: int, text_tokens: int, supervised: float) -> None:
    """Writes `count` samples, each of an image and exactly `text_tokens` text tokens.

    supervised: the share of text tokens, at the end of a sample, that have a loss.
    """
    directory.mkdir()
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    Image.fromarray(noise).save(stream, "JPEG")
    image = stream.getvalue()
    unsupervised = text_tokens - round(supervised * text_tokens)
    ids = [2, IMAGE, *[WORD] * (text_tokens - 1)]  # the image token is not a text token
    row = {
        "dataset": "made",
        "example": 0,
        "images": [{"bytes": image, "path": "0.jpg"}],
        "image_sha256": [hashlib.sha256(image).hexdigest()],
        "turns": [{"user": "", "assistant": "", "template": "t", "row": 0, "turn": 0}],
        "input_ids": ids,
        "loss_mask": [i > unsupervised for i in range(len(ids))],
        "num_images": 1,
        "num_tokens": len(ids),
        "num_supervised": sum(i > unsupervised for i in range(len(ids))),
    }
    shard, lengths = directory / "shard-00000-of-00001.parquet", directory / "lengths.parquet"
    table = pa.Table.from_pylist([{**row, "index": index} for index in range(count)], schema=SHARD)
    pq.write_table(table, shard, row_group_size=8, compression="none", use_dictionary=False, write_page_checksum=True)
    pq.write_table(table.select(LENGTHS.names).cast(LENGTHS), lengths)

    def facts(path: Path) -> dict[str, Any]:
        return {"file": path.name, "sha256": file_sha256(path), "num_bytes": path.stat().st_size}

    manifest = {
        "stage": "shards",
        "format": FORMAT,
        "key": {},
        "num_samples": count,
        "datasets": {"made": {"samples": count}},
        "image_token_id": IMAGE,
        "tokenizer": hashlib.sha256((tokenizer / "tokenizer.json").read_bytes()).hexdigest()[:16],
        "lengths": facts(lengths),
        "shards": [{**facts(shard), "first": 0, "num_samples": count}],
    }
    write_manifest(directory, manifest)
