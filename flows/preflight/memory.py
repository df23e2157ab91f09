"""Estimates the memory of a rank from the models' configurations, without loading weights.

T of P parameters are trained (with LoRA, only the adapters of the language model), stored in w bytes each (2 in bf16, 4
in fp32), on N ranks. In bytes, for what DeepSpeed 0.19 does beyond Rajbhandari et al., "ZeRO" (SC 2020), section 3:

    weights      w · P; with ZeRO-3, ÷ N plus up to 10⁹ gathered parameters
    optimiser    8 · T for the moments, and 4 · T for an fp32 copy of the weights (except with ZeRO-0 in fp32); ÷ N with
                 ZeRO-2 and 3; in CPU memory with offload
    passes       activations, logits and temporary tensors: found by running the model on tensors without data
                 (model/training/activation_memory.py), since they depend on the frozen parts, gradient checkpointing,
                 attention and precision

Gradients are allocated and freed, so the estimate is the largest of these phases. G = w · T, b = w · min(T, 5 · 10⁸):

    a pass       the passes, with gradients that grow as activations shrink. With gradient accumulation also the
                 gradients summed so far: G with ZeRO-0, 4 · T ÷ N with ZeRO-2. On a GPU, ZeRO-2 frees gradients as it
                 reduces them, and has two buckets of b; ZeRO-3 always has one bucket, and 4 · T ÷ N
    reduction    G, and a flat copy of b (except for one rank with ZeRO-0); in bf16 with ZeRO-2 also the 4 · T ÷ N into
                 which the gradients are summed
    step         G, and in bf16 with ZeRO-0 its copy in fp32; 4 · T ÷ N with ZeRO-2 and 3, twice where the gradients
                 must first be flattened (ZeRO-3, and ZeRO-2 in fp32)
    checkpoint   on the CPU with ZeRO-2 and 3: 12 · T ÷ N, assembled in memory in files of at most 2 GiB, and the
                 largest parameter, which is gathered from the ranks
    loading      on the CPU: the weights, and in fp32 the files they are read from (2 bytes per parameter, as published)

On the CPU, the images of prefetched steps and Python with its libraries are added. A pass is a micro-batch of sequences
of `packing.max_tokens`; without packing, of examples with one image at their limit of `max_text_tokens` + M, and each
further image adds M. The overhead of the allocator (2 to 20 % on the CPU) and of CUDA itself (1–2 GiB) is not included.
docs/benchmarks.md compares the estimate with measurements.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoConfig, PreTrainedConfig

from flows.recipe.data import Data
from flows.recipe.recipe import Recipe
from model.configuration import HoneybeeConfig
from model.modeling import HoneybeeForConditionalGeneration
from model.training.activation_memory import Peak, Shape, peak
from model.training.engine.checkpoint import FILE_BYTES
from model.training.engine.lora import add_adapters, target_sizes
from model.training.engine.optimizer import freeze
from model.training.settings import Loading, Train

_KNOWN: dict[str, dict[str, Any]] = yaml.safe_load((Path(__file__).parent / "known_models.yaml").read_text())

LIBRARIES = 0.62 * 2**30  # Python, torch, DeepSpeed and the buffers of their kernels; measured resident memory on a CPU
BUCKET = 500_000_000  # maximum number of gradients that are reduced together: model/training/engine/deepspeed_engine.py
GATHERED = 1_000_000_000  # maximum number of gathered parameters: DeepSpeed's stage3_max_live_parameters


@dataclass(frozen=True)
class Sizes:
    """The number of parameters by part, and the other properties of a model that the estimate needs."""

    parameters: dict[str, int]  # vision, projector, llm
    image_tokens: int
    image_size: int  # side length in pixels
    targets: dict[str, int]  # name of linear layers → sum of their inputs and outputs: model/training/engine/lora.py
    largest: int  # number of elements of the largest parameter
    config: HoneybeeConfig = field(repr=False)


@dataclass(frozen=True)
class Content:
    """Statistics of a stage's samples: the fraction of text positions that are supervised, and the number of positions
    per image (None: one image per example)."""

    supervised: float = 1.0
    positions_per_image: float | None = None


def model_config(model: str) -> PreTrainedConfig | None:
    """Returns the configuration of a model directory, a hub name in the local cache, or a model of known_models.yaml;
    None if it is not available. Raises ValueError if a directory has no valid configuration."""
    if model in _KNOWN:
        return AutoConfig.for_model(**_KNOWN[model])
    try:
        return AutoConfig.from_pretrained(model, local_files_only=True, trust_remote_code=False)
    except OSError as error:
        if Path(model).is_dir():
            raise ValueError(f"{model}: {error}") from None
        return None


def sizes(recipe: Recipe, vision: str, llm: str) -> Sizes | None:
    """Returns the sizes of a recipe's model, or None if a configuration is not available. Raises ValueError if the
    parts do not fit together."""
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
    """Returns the shape of the largest forward pass of a micro-batch."""
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
    """Returns the peak memory of a stage's passes, in addition to weights and accumulated gradients."""
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
    """Returns the phase in which a rank needs the most memory, and the bytes of each kind in that phase, by the
    formulas above. device: cpu or cuda, whose memory is estimated. loading: prefetch settings; default:
    Loading(). Each parameter is one factor of the formulas."""
    found = phases(model, train, ranks, passes, device)
    if device == "cpu":
        steps = (loading or Loading()).prefetch_steps + 3  # prefetched; one being collated and the next; one in use
        images = steps * train.accumulation(ranks) * shape.images * 3 * model.image_size**2 * 4
        found = {name: {"libraries": LIBRARIES, "images": images, **kinds} for name, kinds in found.items()}
    worst = max(found, key=lambda name: sum(found[name].values()))
    return worst, found[worst]


def phases(model: Sizes, train: Train, ranks: int, passes: Peak, device: str) -> Mapping[str, dict[str, float]]:
    """Returns the bytes of each kind in each phase that may need the most memory."""
    bf16, zero, cpu = train.precision == "bf16", train.zero_stage, device == "cpu"
    value = 2 if bf16 else 4
    adapters = train.lora.rank * sum(model.targets[name] for name in train.lora.targets) if train.lora else 0
    total = sum(model.parameters.values()) + adapters
    trained = sum(model.parameters[part] for part in train.trains if part != "llm" or not train.lora) + adapters
    share = trained / ranks if zero else trained  # this rank's part of the optimiser states and reduced gradients
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
    found = {"in a pass": a_pass, "in the gradient reduction": reduction, "in the optimiser step": step}
    if cpu and zero:
        gathered = 12 * model.largest * (1 - 1 / ranks)
        found["while a checkpoint is written"] = {"files": min(12 * share, FILE_BYTES) + gathered}
    result = {name: {**held, **kinds} for name, kinds in found.items()}
    if cpu:
        result["while weights are loaded"] = {"weights": value * total, "files": 0 if bf16 else 2 * total}
    return result
