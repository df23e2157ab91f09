"""Loads the pre-trained parts of a new Honeybee model."""

from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from pipelines.core.tensors_only import tensors_only
from pipelines.schema import IMAGE_TOKEN


def image_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Returns the id of `<image>`. Raises ValueError if it is not a single token of the tokenizer."""
    ids = tokenizer.encode(IMAGE_TOKEN, add_special_tokens=False)
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        raise ValueError(
            f"the tokenizer {tokenizer.name_or_path} has no token {IMAGE_TOKEN} (it encodes it as {ids}): "
            "add it as a special token first"
        )
    return ids[0]


def generation_config(tokenizer: PreTrainedTokenizerBase, image_token_id: int) -> GenerationConfig:
    """Returns the generation settings for a tokenizer: begin, end and padding tokens; the image token is suppressed."""
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        suppress_tokens=[image_token_id],
    )


def token_rows(tokenizer: PreTrainedTokenizerBase) -> int:
    """Returns the number of embedding rows that are needed to cover every token of the tokenizer."""
    return max(len(tokenizer), max(tokenizer.get_vocab().values()) + 1)


def load_vision(name: str | Path, image_size: int | None, dtype: torch.dtype) -> PreTrainedModel:
    """Loads a vision encoder, or the one of a CLIP-like model, for images of `image_size` (None: its own size).

    name: a directory or a hub name. Raises ValueError if weights are missing or the size is not supported.
    """
    with tensors_only(name):
        model, info = AutoModel.from_pretrained(name, dtype=dtype, output_loading_info=True, trust_remote_code=False)
    _refuse_missing(name, info)
    vision = getattr(model, "vision_model", model)
    if image_size is not None and image_size != vision.config.image_size:
        vision = _resize(vision, image_size)
    return vision


def _resize(vision: PreTrainedModel, image_size: int) -> PreTrainedModel:
    """Returns the same encoder with position embeddings that are interpolated (bicubic) to the new patch grid."""
    config = vision.config
    state = vision.state_dict()
    keys = [key for key in state if key.endswith("position_embedding.weight")]
    if len(keys) != 1:
        raise ValueError(
            f"image_size {image_size}: position embeddings of a {config.model_type} cannot be interpolated"
        )
    if image_size % config.patch_size:
        raise ValueError(f"image_size {image_size} must be a multiple of the patch size, {config.patch_size}")
    positions = state[keys[0]]
    old, new = config.image_size // config.patch_size, image_size // config.patch_size
    first = len(positions) - old * old  # a class token has its own position
    grid = positions[first:].float().T.reshape(1, -1, old, old)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    state[keys[0]] = torch.cat([positions[:first], grid.flatten(2)[0].T.to(positions.dtype)])
    config.image_size = image_size
    resized = AutoModel.from_config(config, dtype=vision.dtype)
    resized.load_state_dict(state)
    return resized.eval()


def load_llm(name: str | Path, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype) -> PreTrainedModel:
    """Loads a causal language model with an embedding for every token of the tokenizer; new embeddings are the mean of
    the old ones. name: a directory or a hub name. Raises ValueError if weights are missing."""
    with tensors_only(name):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name, dtype=dtype, output_loading_info=True, trust_remote_code=False
        )
    model, info = loaded
    _refuse_missing(name, info)
    rows = len(model.get_input_embeddings().weight)
    tokens = token_rows(tokenizer)
    if tokens > rows:
        model.resize_token_embeddings(tokens, mean_resizing=False)
        for table in (model.get_input_embeddings(), model.get_output_embeddings()):
            with torch.no_grad():
                table.weight[rows:] = table.weight[:rows].mean(dim=0)
    return model


def _refuse_missing(name: str | Path, info: dict[str, Any]) -> None:
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ValueError(f"{name} lacks {len(missing)} weights of its model; the first is {missing[0]}")
