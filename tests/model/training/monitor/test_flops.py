"""Compares the FLOPs of a step with torch's count during a real step, and looks up peaks by CUDA device name."""

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, MixtralConfig, Qwen2Config

from model import HoneybeeForConditionalGeneration
from model.training.engine.optimizer import freeze
from model.training.monitor.flops import Flops, UnsupportedModelError, attended_pairs, peak_tflops

LENGTH, ROWS = 20, 3
HEADS, HEAD_WIDTH, LAYERS = 4, 8, 2  # of the tiny language model
SUPERVISED = 5  # tokens per row


def measured(model: HoneybeeForConditionalGeneration, backward: bool) -> int:
    """Returns torch's count for ROWS rows of LENGTH tokens with one image each."""
    images = model.config.num_image_tokens
    ids = torch.full((ROWS, LENGTH), 7)
    ids[:, 1 : 1 + images] = model.config.image_token_id
    labels = torch.where(torch.arange(LENGTH) >= LENGTH - SUPERVISED, ids, -100)
    pixels = torch.zeros(ROWS, 3, 32, 32)
    # The fused CPU kernel is unknown to the counter.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss = model(input_ids=ids, labels=labels, pixel_values=pixels).loss
        if backward:
            loss.backward()
    return counter.get_total_flops()


def other_half(passes: int) -> int:
    """Returns the FLOPs of scores above the diagonal, which unfused attention computes but the formula omits."""
    pairs = ROWS * (LENGTH**2 - attended_pairs(LENGTH))
    return passes * 2 * 2 * LAYERS * HEADS * HEAD_WIDTH * pairs


def step(model: HoneybeeForConditionalGeneration, trains: tuple[str, ...]) -> int:
    return Flops.count(model.config, trains).of([LENGTH] * ROWS, SUPERVISED * ROWS, ROWS)


def unasked(model: HoneybeeForConditionalGeneration, part: str) -> int:
    """Returns the FLOPs of the gradient of the input of a part's first matrices, which is not computed."""
    if part == "vision":  # the patches' convolution
        return ROWS * 2 * 16 * model.vision.embeddings.patch_embedding.weight.numel()
    return ROWS * 2 * 16 * model.projector.net[0].weight.numel()


@pytest.fixture
def model(tiny_backbones: Any) -> HoneybeeForConditionalGeneration:
    llm = tiny_backbones / "llm"
    made = HoneybeeForConditionalGeneration.from_backbones(
        tiny_backbones / "vision", llm, {"type": "linear", "num_tokens": 16}, llm
    )
    return made.train()


def test_a_forward_pass(model: HoneybeeForConditionalGeneration) -> None:
    found = measured(model.requires_grad_(False), backward=False)
    # Nothing is trained, but the attention of the language model is always counted with its backward.
    forward = step(model, ()) - 2 * (3 * 4 * LAYERS * HEADS * HEAD_WIDTH * ROWS * attended_pairs(LENGTH)) // 3
    assert found == forward + other_half(1)


@pytest.mark.parametrize(
    ("trains", "first"),
    [
        (("projector",), "projector"),  # stage 1: the gradient passes through the frozen language model
        (("projector", "llm"), "projector"),
        (("vision", "projector", "llm"), "vision"),
    ],
)
def test_forward_and_backward(model: HoneybeeForConditionalGeneration, trains: tuple[str, ...], first: str) -> None:
    freeze(model, trains)
    assert measured(model, backward=True) == step(model, trains) + other_half(3) - unasked(model, first)


def test_forward_and_backward_of_the_language_model_only(model: HoneybeeForConditionalGeneration) -> None:
    freeze(model, ("llm",))
    assert measured(model, backward=True) == step(model, ("llm",)) + other_half(3)


@pytest.mark.parametrize(
    "projector",
    [
        {"type": "c-abstractor", "num_tokens": 4, "settings": {"hidden_size": 32, "depth": 1}},
        {"type": "resampler", "num_tokens": 4, "settings": {"hidden_size": 32, "num_layers": 1, "num_heads": 2}},
    ],
)
def test_every_projector_is_counted(tiny_backbones: Any, projector: dict[str, Any]) -> None:
    llm = tiny_backbones / "llm"
    model = HoneybeeForConditionalGeneration.from_backbones(tiny_backbones / "vision", llm, projector, llm)
    found = measured(model.requires_grad_(False), backward=False)
    forward = step(model, ()) - 2 * (3 * 4 * LAYERS * HEADS * HEAD_WIDTH * ROWS * attended_pairs(LENGTH)) // 3
    assert found == forward + other_half(1)


def test_packed_examples_attend_only_to_themselves(model: HoneybeeForConditionalGeneration) -> None:
    flops = Flops.count(model.config, ("llm",))
    one_example, two_examples = flops.of([30], 0, 0), flops.of([10, 20], 0, 0)
    assert one_example - two_examples == 3 * 4 * LAYERS * HEADS * HEAD_WIDTH * 10 * 20


@pytest.mark.parametrize(("length", "window", "pairs"), [(4, None, 10), (4, 9, 10), (4, 2, 7), (1, 1, 1), (0, None, 0)])
def test_attended_pairs(length: int, window: int | None, pairs: int) -> None:
    assert attended_pairs(length, window) == pairs
    assert pairs == sum(min(i + 1, window or length) for i in range(length))


SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
SMALL |= {"num_hidden_layers": 2, "vocab_size": 64}


def test_sliding_windows(model: HoneybeeForConditionalGeneration) -> None:
    model.config.text_config = Qwen2Config(
        **SMALL, use_sliding_window=True, sliding_window=3, layer_types=["full_attention", "sliding_attention"]
    )
    assert Flops.count(model.config, ("llm",)).pair == ((None, 12 * 32), (3, 12 * 32))


def test_tied_embeddings_have_a_head(model: HoneybeeForConditionalGeneration) -> None:
    model.config.text_config = LlamaConfig(**SMALL, tie_word_embeddings=True)
    assert Flops.count(model.config, ("llm",)).supervised_token == 3 * 2 * 32 * 64


def test_mixture_of_experts_is_refused(model: HoneybeeForConditionalGeneration) -> None:
    model.config.text_config = MixtralConfig(**SMALL, num_local_experts=2)
    with pytest.raises(UnsupportedModelError, match="is not the weight of a linear layer"):
        Flops.count(model.config, ("llm",))


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A100 80GB PCIe", 312.0),
        ("NVIDIA A100-SXM4-80GB MIG 3g.40gb", None),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.4),
        ("NVIDIA RTX A6000", 154.8),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA L40", None),
    ],
)
def test_peak_by_device_name(name: str, peak: float | None) -> None:
    assert peak_tflops(name) == peak
