"""The floating-point operations that a step of training needs, and how much of the device's peak they are (MFU).

After Chowdhery et al., "PaLM" (2022), appendix B: model FLOPs utilisation counts what the model needs, not what was
done for it, so neither recomputation (gradient checkpointing) nor padding counts. Of a step, in multiply-adds × 2:

    language model   (2 · W · t + 2 · V · s) · b  +  4 · a · d · Σ pairs(n) · 3      summed over its layers
    an image         vision forward · 3 if it trains, else 1;  projector forward · b

W: weights of the layers' matrices, t: tokens, V: weights of the head, s: supervised tokens, the only ones with logits;
a: heads, d: their width, n: tokens of one example, pairs(n) = n (n + 1) / 2, since an example sees itself alone, each
token what is before it, in a sliding window no more than that. b, forward and backward of a part: 3 where it trains
(the gradients of weights and of activations), 2 where it is frozen and the gradient passes through it to a part below,
1 where it is frozen with all below it. Attention has no weights: its backward is always twice its forward.

What differs from the kernels' own count: fused attention may compute the whole square; nothing below the first trained
matrix asks for the gradient of its input, which is counted all the same; a batch without images runs a blank one.
Norms, activations, embeddings and the optimiser do not count.
"""

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from model.configuration import HoneybeeConfig
from model.modeling import HoneybeeForConditionalGeneration
from model.training.job import Job

log = logging.getLogger("honeybee.training")

# Dense bf16 with fp32 accumulation, in TFLOPS, after NVIDIA's data sheets (which print twice that, with sparsity).
# The whole name must match: a MIG slice or a laptop's chip of the same family is another device.
PEAK_TFLOPS = {
    r"NVIDIA A100[ -].*": 312.0,
    r"NVIDIA A800[ -].*": 312.0,
    r"NVIDIA (H100|H800)( 80GB HBM3)?": 989.4,
    r"NVIDIA H100 PCIe": 756.0,
    r"NVIDIA H100 NVL": 835.5,
    r"NVIDIA H200": 989.4,
    r"NVIDIA H200 NVL": 835.5,
    r"NVIDIA GH200.*": 989.4,
    r"NVIDIA RTX A6000": 154.8,
    r"NVIDIA L40S": 362.0,
    r"NVIDIA L4": 121.0,
    r"NVIDIA A10": 125.0,
    r"NVIDIA RTX 6000 Ada Generation": 364.2,
    r"NVIDIA GeForce RTX 3090": 71.0,
    r"NVIDIA GeForce RTX 4090": 165.2,
}


class UncountedError(ValueError):
    """A model whose operations these formulas do not count; the message says why."""


def peak_tflops(device_name: str) -> float | None:
    """Of a GPU by the name that CUDA gives it; None where it is not known."""
    if "MIG" in device_name:
        return None
    return next((peak for name, peak in PEAK_TFLOPS.items() if re.fullmatch(name, device_name)), None)


def attended_pairs(length: int, window: int | None = None) -> int:
    """Pairs (token, token that it sees) of an example: itself and all before it, `window` in all where one is set."""
    seen = min(length, window or length)
    return seen * (seen + 1) // 2 + (length - seen) * seen


def peak_flops(job: Job, device: torch.device) -> float | None:
    """FLOPs a second that the device of a rank can do at most: what the job says, or bf16 on a GPU that is known."""
    if job.peak_tflops is None and device.type == "cuda" and job.train.precision == "bf16":
        known = peak_tflops(torch.cuda.get_device_name(device))
        return None if known is None else known * 1e12
    return None if job.peak_tflops is None else job.peak_tflops * 1e12


@dataclass(frozen=True)
class Flops:
    """What a step needs, for one choice of the parts that train. All numbers are FLOPs, forward and backward."""

    token: int  # of the language model's layers, without attention scores
    supervised_token: int  # of its head
    pair: tuple[tuple[int | None, int], ...]  # (sliding window, FLOPs of a pair of tokens in all layers with it)
    image: int  # of vision encoder and projector

    def of(self, lengths: Sequence[int], supervised: int, images: int) -> int:
        """lengths: the tokens of each example, visual ones included; supervised: of all; images: that they show."""
        scores = sum(cost * attended_pairs(length, window) for window, cost in self.pair for length in lengths)
        return self.token * sum(lengths) + self.supervised_token * supervised + scores + self.image * images

    @classmethod
    def count(cls, config: HoneybeeConfig, trains: Iterable[str], adapters: bool = False) -> "Flops":
        """trains: of vision, projector, llm. adapters: of llm only these train; they themselves are not counted.

        Runs the vision encoder and the projector once on one image, without weights or memory (torch's meta device), so
        that every type of them is counted. Raises UncountedError for language models with other layers than attention
        and linear ones.
        """
        trained = set(trains)
        with torch.device("meta"):
            model = HoneybeeForConditionalGeneration(config).requires_grad_(False)
        head = model.llm.get_output_embeddings()
        layers = _linear_weights(model.llm) - head.weight.numel()
        side = config.vision_config.image_size
        below = bool(trained & {"vision", "projector"})
        with FlopCounterMode(display=False) as vision:
            features = model.get_vision_features(torch.empty(1, 3, side, side, device="meta"))
        with FlopCounterMode(display=False) as projector:
            model.projector(features)
        of_llm = _passes("llm" in trained and not adapters, below or adapters)
        return cls(
            token=2 * layers * of_llm,
            supervised_token=2 * head.weight.numel() * of_llm,
            pair=_attention(config.text_config),
            image=vision.get_total_flops() * _passes("vision" in trained, False)
            + projector.get_total_flops() * _passes("projector" in trained, "vision" in trained),
        )


def count_flops(config: Any, trains: Iterable[str], adapters: bool = False) -> Flops | None:
    """Flops.count; None, with a line in the log, for a model that it does not count."""
    try:
        return Flops.count(config, trains, adapters)
    except UncountedError as error:
        log.warning("FLOPs and MFU are not told: %s", error)
        return None


def _passes(trains: bool, below: bool) -> int:
    """Forward and backward of a part's matrices, in forwards. below: whether a part below it trains."""
    return 3 if trains else 2 if below else 1


def _linear_weights(llm: nn.Module) -> int:
    """The weights of its linear layers, head included. Raises UncountedError if it has other matrices than these and
    embeddings, as a mixture of experts does."""
    known: dict[int, int] = {}
    for module in llm.modules():
        if isinstance(module, nn.Linear):
            known[id(module.weight)] = module.weight.numel()
    embeddings = {id(module.weight) for module in llm.modules() if isinstance(module, nn.Embedding)}
    for name, parameter in llm.named_parameters():
        if parameter.ndim > 1 and id(parameter) not in known and id(parameter) not in embeddings:
            raise UncountedError(f"llm.{name} is no weight of a linear layer")
    return sum(known.values())


def _attention(config: object) -> tuple[tuple[int | None, int], ...]:
    """FLOPs of a pair of tokens, by sliding window: two products forward, twice that backward, in every head."""
    heads, layers = getattr(config, "num_attention_heads", None), getattr(config, "num_hidden_layers", None)
    width = getattr(config, "hidden_size", None)
    if not heads or not layers or not width:
        raise UncountedError(f"{type(config).__name__} does not say its heads, layers and width")
    each = 3 * 2 * 2 * heads * (getattr(config, "head_dim", None) or width // heads)
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention" if window else "full_attention"] * layers
    other = sorted(set(kinds) - {"full_attention", "sliding_attention"})
    if other:
        raise UncountedError(f"the language model has layers of {', '.join(other)}")
    windows = [window if kind == "sliding_attention" else None for kind in kinds]
    return tuple((kind, each * windows.count(kind)) for kind in dict.fromkeys(windows))
