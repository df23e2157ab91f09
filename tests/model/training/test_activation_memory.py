"""Compares the memory measured on the meta device with what PyTorch's profiler counts in a real pass."""

from itertools import accumulate
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import CLIPVisionConfig, LlamaConfig

from model import HoneybeeConfig, HoneybeeForConditionalGeneration
from model.training.activation_memory import Shape, peak
from model.training.engine.optimizer import freeze
from model.training.engine.packed_attention import NAME as PACKED
from model.training.engine.packed_attention import Examples

ROWS, POSITIONS, TOKENS, SUPERVISED = 2, 256, 16, 100


def model(trains: tuple[str, ...], checkpointing: bool = False) -> HoneybeeForConditionalGeneration:
    width: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 4}
    config = HoneybeeConfig(
        vision_config=CLIPVisionConfig(**width, num_hidden_layers=3, image_size=64, patch_size=8),
        text_config=LlamaConfig(**width, num_hidden_layers=4, vocab_size=2000),
        projector={"type": "c-abstractor", "num_tokens": TOKENS, "settings": {"hidden_size": 64, "depth": 1}},
        image_token_id=0,
    )
    made = HoneybeeForConditionalGeneration(config).train()
    freeze(made, trains)
    if checkpointing:
        made.gradient_checkpointing_enable({"use_reentrant": False})
    made.vision.set_attn_implementation("sdpa")
    return made


def measured(real: HoneybeeForConditionalGeneration, attention: str) -> int:
    """Returns the peak bytes of a forward and backward pass that retains gradients."""
    ids = torch.ones(ROWS, POSITIONS, dtype=torch.long)
    ids[:, :TOKENS] = 0
    labels = ids.masked_fill(torch.arange(POSITIONS) < POSITIONS - SUPERVISED, -100)
    positions = torch.arange(POSITIONS).expand(ROWS, -1)
    more = Examples.of(positions, torch.device("cpu")).inputs() if attention == PACKED else {}
    real.llm.set_attn_implementation(attention)
    pixels = torch.randn(ROWS, 3, 64, 64)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        real(input_ids=ids, pixel_values=pixels, labels=labels, position_ids=positions, **more).loss.backward()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


@pytest.mark.parametrize(
    ("trains", "checkpointing", "attention"),
    [
        (("projector",), False, "sdpa"),
        (("projector",), True, "sdpa"),
        (("projector", "llm"), False, "sdpa"),
        (("projector", "llm"), True, "sdpa"),
        (("projector", "llm"), False, PACKED),
        (("vision", "projector", "llm"), False, "sdpa"),
    ],
)
def test_peak_matches_the_profiler(trains: tuple[str, ...], checkpointing: bool, attention: str) -> None:
    with torch.device("meta"):
        bare = model(trains, checkpointing)
    found = peak(bare, Shape(ROWS, POSITIONS, ROWS, ROWS * SUPERVISED), attention)
    assert found.growing == pytest.approx(measured(model(trains, checkpointing), attention), rel=0.1)
    assert found.handed_on <= found.growing
    assert all(parameter.grad is None for parameter in bare.parameters())
