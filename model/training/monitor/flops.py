"""Counts the floating-point operations of a training step, for model FLOPs utilisation (MFU).

Follows Chowdhery et al., "PaLM" (2022), appendix B: MFU counts the operations that the model needs, not those that the
hardware executes, so neither recomputation (gradient checkpointing) nor padding counts. A step has, with two FLOPs per
multiply-add:

    language model   (2 · W · t + 2 · V · s) · b  +  4 · a · d · Σ pairs(n) · 3      summed over its layers
    an image         vision forward · 3 if it trains, else 1;  projector forward · b

W: weights of the layers' matrices, t: tokens, V: weights of the head, s: supervised tokens, the only ones with logits;
a: heads, d: their width, n: tokens of one example, pairs(n) = n (n + 1) / 2, since a token attends only to itself and
to the earlier tokens of its example, at most to the length of a sliding window. b, the passes through a part, in
forwards: 3 if it trains (gradients of weights and activations), 2 if it is frozen and the gradient passes through it to
a part below, 1 if it and everything below it is frozen. Attention has no weights: its backward is always twice its
forward.

The count differs from what kernels execute: fused attention may compute the full square; the gradient of the input of
the first trained matrix is counted although it is not computed; a batch without images runs the encoder on a blank one.
Norms, activations, embeddings and the optimiser are not counted.
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

# Dense bf16 with fp32 accumulation, in TFLOPS, from NVIDIA's data sheets (which print twice that, with sparsity).
# The full name must match: a MIG slice or a laptop chip of the same family has a different peak.
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


class UnsupportedModelError(ValueError):
    """Raised for a model whose operations these formulas do not cover; the message says why."""


def peak_tflops(device_name: str) -> float | None:
    """Returns the peak of a GPU by its CUDA device name, or None if it is unknown."""
    if "MIG" in device_name:
        return None
    return next((peak for name, peak in PEAK_TFLOPS.items() if re.fullmatch(name, device_name)), None)


def attended_pairs(length: int, window: int | None = None) -> int:
    """Returns the number of pairs (token, token it attends to) of an example: itself and earlier ones, up to `window`
    in total."""
    span = min(length, window or length)
    return span * (span + 1) // 2 + (length - span) * span


def peak_flops(job: Job, device: torch.device) -> float | None:
    """Returns the peak FLOPs per second of a rank's device: the job's `peak_tflops`, or that of bf16 on a known GPU."""
    if job.peak_tflops is None and device.type == "cuda" and job.train.precision == "bf16":
        known = peak_tflops(torch.cuda.get_device_name(device))
        return None if known is None else known * 1e12
    return None if job.peak_tflops is None else job.peak_tflops * 1e12


@dataclass(frozen=True)
class Flops:
    """Costs of a step for one choice of trained parts, in FLOPs, forward and backward."""

    token: int  # per token in the layers of the language model, without attention scores
    supervised_token: int  # per supervised token in its head
    pair: tuple[tuple[int | None, int], ...]  # (sliding window, cost of a pair of tokens in all layers with it)
    image: int  # per image in vision encoder and projector

    def of(self, lengths: Sequence[int], supervised: int, images: int) -> int:
        """Returns the FLOPs of examples.

        lengths: tokens per example, including visual tokens. supervised, images: their numbers over all examples.
        """
        scores = sum(cost * attended_pairs(length, window) for window, cost in self.pair for length in lengths)
        return self.token * sum(lengths) + self.supervised_token * supervised + scores + self.image * images

    @classmethod
    def count(cls, config: HoneybeeConfig, trains: Iterable[str], adapters: bool = False) -> "Flops":
        """Counts the costs for a model. trains: a subset of vision, projector, llm. adapters: of llm only adapters
        train; their own operations are not counted.

        Runs the vision encoder and the projector once on one image on torch's meta device (no weights, no memory), so
        that every type is covered. Raises UncountedError if the language model has layers other than attention and
        linear ones.
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
        llm_passes = _passes("llm" in trained and not adapters, below or adapters)
        return cls(
            token=2 * layers * llm_passes,
            supervised_token=2 * head.weight.numel() * llm_passes,
            pair=_attention(config.text_config),
            image=vision.get_total_flops() * _passes("vision" in trained, False)
            + projector.get_total_flops() * _passes("projector" in trained, "vision" in trained),
        )


def count_flops(config: Any, trains: Iterable[str], adapters: bool = False) -> Flops | None:
    """Returns Flops.count, or logs the reason and returns None if the model is not covered."""
    try:
        return Flops.count(config, trains, adapters)
    except UnsupportedModelError as error:
        log.warning("FLOPs and MFU are not reported: %s", error)
        return None


def _passes(trains: bool, below: bool) -> int:
    """Returns the cost of forward and backward in a part's matrices, in forwards. below: a part below it trains."""
    return 3 if trains else 2 if below else 1


def _linear_weights(llm: nn.Module) -> int:
    """Returns the number of weights in linear layers, including the head. Raises UncountedError if there are matrices
    other than these and embeddings, as in a mixture of experts."""
    known: dict[int, int] = {}
    for module in llm.modules():
        if isinstance(module, nn.Linear):
            known[id(module.weight)] = module.weight.numel()
    embeddings = {id(module.weight) for module in llm.modules() if isinstance(module, nn.Embedding)}
    for name, parameter in llm.named_parameters():
        if parameter.ndim > 1 and id(parameter) not in known and id(parameter) not in embeddings:
            raise UnsupportedModelError(f"llm.{name} is not the weight of a linear layer")
    return sum(known.values())


def _attention(config: object) -> tuple[tuple[int | None, int], ...]:
    """Returns the FLOPs per pair of tokens, by sliding window: two products forward and four backward in each head."""
    heads, layers = getattr(config, "num_attention_heads", None), getattr(config, "num_hidden_layers", None)
    width = getattr(config, "hidden_size", None)
    if not heads or not layers or not width:
        raise UnsupportedModelError(
            f"{type(config).__name__} does not define its numbers of heads and layers and its width"
        )
    each = 3 * 2 * 2 * heads * (getattr(config, "head_dim", None) or width // heads)
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention" if window else "full_attention"] * layers
    other = sorted(set(kinds) - {"full_attention", "sliding_attention"})
    if other:
        raise UnsupportedModelError(f"the language model has layers of unsupported types: {', '.join(other)}")
    windows = [window if kind == "sliding_attention" else None for kind in kinds]
    return tuple((kind, each * windows.count(kind)) for kind in dict.fromkeys(windows))
