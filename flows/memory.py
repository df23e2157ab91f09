"""How much memory a rank will take, estimated from the models' configurations; no weight is loaded.

Of P parameters T are trained (of a language model with LoRA its adapters alone), in values of w bytes (2 in bf16, 4 in
fp32), on N ranks. In bytes, with what DeepSpeed 0.19 does beyond Rajbhandari et al., "ZeRO" (SC 2020), section 3:

    weights      w · P; with ZeRO-3 ÷ N, and up to 10⁹ of them gathered
    optimiser    8 · T of moments, and 4 · T of an fp32 copy of the weights, which only ZeRO-0 in fp32 does without;
                 ÷ N with ZeRO-2 and 3; with offload in the CPU's memory
    passes       activations, logits and what operations need for a moment: found by running the model on tensors
                 without data (model/training/passes.py), since it depends on what is frozen, on checkpointing,
                 attention and precision

Gradients come and go, so the estimate is that of the moment that takes most. G = w · T, b = w · min(T, 5 · 10⁸):

    a pass       the passes with gradients that grow as activations shrink; where several passes make a step the sum so
                 far is there too: G with ZeRO-0, 4 · T ÷ N with ZeRO-2. On a GPU ZeRO-2 keeps none, but has two buckets
                 of b; ZeRO-3 has one at all times, and 4 · T ÷ N
    reduction    G, and a flat copy of b, which one rank with ZeRO-0 does without; in bf16 with ZeRO-2 4 · T ÷ N, into
                 which they are summed
    step         G, and in bf16 with ZeRO-0 its copy in fp32; 4 · T ÷ N with ZeRO-2 and 3, twice where it is first made
                 flat (ZeRO-3, and ZeRO-2 in fp32)
    checkpoint   on the CPU with ZeRO-2 and 3: 12 · T ÷ N, as files of at most 2 GiB, are put together in memory, and
                 beside them the largest parameter, which is gathered from the ranks
    loading      on the CPU: weights, and in fp32 the files that they come from (2 bytes a parameter, as published)

On the CPU there are the pictures of steps that are made ready, and Python with its libraries. A pass is one of micro-
batch sequences of `packing.max_tokens`, without packing examples with a picture at their limit, `max_text_tokens` + M;
one with more pictures takes M for each of them. What the allocator loses (on the CPU 2 to 20 %) and CUDA itself takes
(1–2 GiB) comes on top.
benchmarks/README.md has the estimate beside what was measured.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoConfig, PreTrainedConfig

from flows.recipe import Data, Recipe, Train
from model.configuration import HoneybeeConfig
from model.modeling import HoneybeeForConditionalGeneration
from model.training.checkpoint import FILE_BYTES
from model.training.job import Loading
from model.training.lora import add_adapters, target_sizes
from model.training.optimizer import freeze
from model.training.passes import Peak, Shape, peak

_KNOWN: dict[str, dict[str, Any]] = yaml.safe_load((Path(__file__).parent / "known_models.yaml").read_text())

LIBRARIES = 0.62 * 2**30  # Python, torch, DeepSpeed and the buffers of their kernels, resident on a CPU: measured
BUCKET = 500_000_000  # gradients that are reduced together, at most: model/training/engine.py
GATHERED = 1_000_000_000  # parameters that ZeRO-3 keeps whole, at most: DeepSpeed's stage3_max_live_parameters


@dataclass(frozen=True)
class Sizes:
    """Parameters by part, and what else an estimate needs of a model."""

    parameters: dict[str, int]  # vision, projector, llm
    image_tokens: int
    image_size: int  # S, pixels
    targets: dict[str, int]  # of the names of linear layers: model/training/lora.py
    largest: int  # parameter
    config: HoneybeeConfig = field(repr=False)


@dataclass(frozen=True)
class Content:
    """What a stage's samples are like: of text positions, how many count in the loss, and how many positions there are
    to a picture (None: each example has one)."""

    supervised: float = 1.0
    positions_per_image: float | None = None


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
    return sizes_of(
        HoneybeeConfig(
            vision_config=vision_config,
            text_config=text_config,
            projector=recipe.model.projector.model_dump(),
            vision_layer=recipe.model.vision_layer,
        )
    )


def sizes_of(config: HoneybeeConfig) -> Sizes:
    with torch.device("meta"):
        model = HoneybeeForConditionalGeneration(config)
    parts = {"vision": model.vision, "projector": model.projector, "llm": model.llm}
    return Sizes(
        parameters={name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()},
        image_tokens=config.num_image_tokens,
        image_size=config.vision_config.image_size,
        targets=target_sizes(model.llm),
        largest=max(p.numel() for p in model.parameters()),
        config=config,
    )


def pass_shape(model: Sizes, data: Data, train: Train, content: Content) -> Shape:
    """Of the largest pass of a micro-batch."""
    limit = data.max_text_tokens + model.image_tokens
    length = train.packing.max_tokens if train.packing else limit
    each = 1 if train.packing is None else max(1, round(length / (content.positions_per_image or limit)))
    if train.packing and train.packing.max_images:
        each = min(each, train.packing.max_images)
    text = max(1, length - each * model.image_tokens)
    return Shape(
        rows=train.micro_batch,
        positions=length,
        images=train.micro_batch * each,
        supervised=max(1, round(train.micro_batch * text * content.supervised)),
        masked=train.packing is not None and train.attention == "sdpa",
    )


def pass_peak(model: Sizes, train: Train, shape: Shape) -> Peak:
    """What the passes of a stage take beyond weights and kept gradients."""
    with torch.device("meta"):
        bare = HoneybeeForConditionalGeneration(model.config)
        if train.lora is not None:
            add_adapters(bare.llm, train.lora, 0)
    bare.train().to(dtype=torch.float32 if train.precision == "fp32" else torch.bfloat16)
    freeze(bare, train.trains)
    if train.gradient_checkpointing:
        bare.gradient_checkpointing_enable({"use_reentrant": False})
    return peak(bare, shape, train.attention)


def rank_bytes(
    model: Sizes, train: Train, ranks: int, shape: Shape, passes: Peak, device: str, loading: Loading | None = None
) -> tuple[str, dict[str, float]]:
    """When one rank takes most, and the bytes of each kind at that moment, by the formulas above. device: cpu or cuda,
    whose own memory is meant. loading: of the pictures on a CPU; its defaults where absent."""
    found = moments(model, train, ranks, passes, device)
    if device == "cpu":
        kept = (loading or Loading()).prefetch_steps + 3  # made ready; being put together, next of it; in use
        pictures = kept * train.accumulation(ranks) * shape.images * 3 * model.image_size**2 * 4
        found = {name: {"libraries": LIBRARIES, "pictures": pictures, **kinds} for name, kinds in found.items()}
    worst = max(found, key=lambda name: sum(found[name].values()))
    return worst, found[worst]


def moments(model: Sizes, train: Train, ranks: int, passes: Peak, device: str) -> Mapping[str, dict[str, float]]:
    """Bytes of each kind at each moment that may take most."""
    bf16, zero, cpu = train.precision == "bf16", train.zero_stage, device == "cpu"
    value = 2 if bf16 else 4
    adapters = train.lora.rank * sum(model.targets[name] for name in train.lora.targets) if train.lora else 0
    total = sum(model.parameters.values()) + adapters
    trained = sum(model.parameters[part] for part in train.trains if part != "llm" or not train.lora) + adapters
    share = trained / ranks if zero else trained  # of the optimiser's states, and of the gradients that it is given
    states = (8 if zero == 0 and not bf16 else 12) * share
    away = train.offload and not cpu
    gradients, bucket, summed = value * trained, value * min(trained, BUCKET), 0 if away else 4 * share
    held: dict[str, float] = {"weights": value * total, "optimiser": 0 if away else states}
    if zero == 3:
        held["weights"] = value * (total / ranks + min(total, GATHERED))
        held |= {"gradients": summed, "buckets": bucket}
    several = train.accumulation(ranks) > 1
    a_pass: dict[str, float]
    reduction: dict[str, float]
    step: dict[str, float]
    if zero == 0:
        a_pass = {"passes": passes.handed_on, "gradients": gradients} if several else {"passes": passes.growing}
        reduction = {"gradients": gradients, "buckets": bucket if ranks > 1 else 0}
        step = {"gradients": gradients + (4 * trained if bf16 else 0)}
    elif zero == 2 and cpu:
        so_far = {"gradients": summed} if several else {}
        a_pass = {"passes": passes.growing, **so_far}
        reduction = {"gradients": gradients + (summed if bf16 or several else 0), "buckets": bucket}
        step = {"gradients": summed if bf16 else 2 * summed}
    elif zero == 2:
        a_pass = reduction = {"passes": passes.handed_on, "gradients": summed, "buckets": 2 * bucket}
        step = {"gradients": summed if bf16 else 2 * summed}
    else:
        a_pass = reduction = {"passes": passes.handed_on}
        step = {"gradients": 2 * summed}
    found = {"in a pass": a_pass, "as gradients are reduced": reduction, "in the optimiser's step": step}
    if cpu and zero:
        whole = 12 * model.largest * (1 - 1 / ranks)
        found["as a checkpoint is written"] = {"files": min(12 * share, FILE_BYTES) + whole}
    result = {name: {**held, **kinds} for name, kinds in found.items()}
    if cpu:
        result["as weights are loaded"] = {"weights": value * total, "files": 0 if bf16 else 2 * total}
    return result
