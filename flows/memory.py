"""How much memory of a GPU a stage will take, estimated from the models' configurations; no weight is loaded.

A rank holds, in bytes, with P parameters in all, T of them trained (of a language model with LoRA its adapters alone),
w = 2 bytes a value in bf16 (4 in fp32), N ranks:

    weights            w · P                (÷ N with ZeRO-3)
    gradients          w · T                (÷ N with ZeRO-2 and ZeRO-3; in the CPU's memory with offload)
    optimiser          12 · T               (fp32 master copy and two moments; ÷ N with ZeRO-2 and 3; CPU with offload)
    activations        w · t · h · L + 17 · w · t · h        with gradient checkpointing: each layer's input, and all
                                                             of the one layer that is computed again
                       17 · w · t · h · L                    without
    logits             (2 w + 4) · t · V

t: tokens of a micro-batch (packs of `packing.max_tokens`; without packing examples, each at most `max_text_tokens` + M;
one with more pictures takes M for each of them), h: width, L: layers, V: vocabulary of the language model. States after
Rajbhandari et al., "ZeRO" (SC 2020), section 3; activations after Korthikanti et al., "Reducing Activation
Recomputation in Large Transformer Models" (2022), section 4.1, without the attention matrix, which fused attention does
not keep (attention among packed examples, without flash attention, does keep a mask). What the allocator loses and CUDA
itself takes (1–2 GiB) comes on top.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoConfig, PreTrainedConfig

from flows.recipe import Data, Recipe, Train
from model.configuration import HoneybeeConfig
from model.modeling import HoneybeeForConditionalGeneration
from model.training.lora import target_sizes

_KNOWN: dict[str, dict[str, Any]] = yaml.safe_load((Path(__file__).parent / "known_models.yaml").read_text())


@dataclass(frozen=True)
class Sizes:
    """Parameters by part, and what activations depend on."""

    parameters: dict[str, int]  # vision, projector, llm
    width: int
    layers: int
    vocabulary: int
    image_tokens: int
    image_size: int  # S, pixels
    targets: dict[str, int]  # of the names of linear layers: model/training/lora.py


def model_config(model: str) -> PreTrainedConfig | None:
    """Of a directory, of a hub name in the local cache, or of a model that this project knows; else None."""
    if model in _KNOWN:
        return AutoConfig.for_model(**_KNOWN[model])
    try:
        return AutoConfig.from_pretrained(model, local_files_only=True, trust_remote_code=False)
    except OSError as error:
        if Path(model).is_dir():
            raise ValueError(f"{model}: {error}") from None
        return None


def sizes(recipe: Recipe, vision: str, llm: str) -> Sizes | None:
    """None if a configuration is not at hand. Raises ValueError where the parts cannot fit together."""
    vision_config, text_config = model_config(vision), model_config(llm)
    if vision_config is None or text_config is None:
        return None
    vision_config = getattr(vision_config, "vision_config", vision_config)
    if recipe.model.image_size:
        vision_config.image_size = recipe.model.image_size
    config = HoneybeeConfig(
        vision_config=vision_config,
        text_config=text_config,
        projector=recipe.model.projector.model_dump(),
        vision_layer=recipe.model.vision_layer,
    )
    with torch.device("meta"):
        model = HoneybeeForConditionalGeneration(config)
    parts = {"vision": model.vision, "projector": model.projector, "llm": model.llm}
    return Sizes(
        parameters={name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()},
        width=text_config.hidden_size,
        layers=text_config.num_hidden_layers,
        vocabulary=text_config.vocab_size,
        image_tokens=config.num_image_tokens,
        image_size=vision_config.image_size,
        targets=target_sizes(model.llm),
    )


def rank_bytes(model: Sizes, data: Data, train: Train, ranks: int) -> dict[str, float]:
    """Bytes of each kind on one GPU, by the formula above."""
    value = 2 if train.precision == "bf16" else 4
    adapters = train.lora.rank * sum(model.targets[name] for name in train.lora.targets) if train.lora else 0
    total = sum(model.parameters.values()) + adapters
    whole = [part for part in train.trains if part != "llm" or not train.lora]
    trained = sum(model.parameters[part] for part in whole) + adapters
    divided = ranks if train.zero_stage >= 2 else 1
    on_gpu = 0 if train.offload else 1
    longest = train.packing.max_tokens if train.packing else data.max_text_tokens + model.image_tokens
    tokens = train.micro_batch * longest
    layer = 17 * value * tokens * model.width
    kept = value * tokens * model.width * model.layers + layer if train.gradient_checkpointing else layer * model.layers
    return {
        "weights": value * total / (ranks if train.zero_stage == 3 else 1),
        "gradients": on_gpu * value * trained / divided,
        "optimiser": on_gpu * 12 * trained / divided,
        "activations": kept,
        "logits": (2 * value + 4) * tokens * model.vocabulary,
    }
