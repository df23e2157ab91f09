"""Tokens per second and MFU of both stages.

    python -m benchmarks.training.step_time [--size 1b] [--image-tokens 144 256]

The paper's architecture with a smaller language model: CLIP ViT-L/14 at 224 px, a C-Abstractor of width 1,024 and a
Llama of 1.1 billion parameters, with random weights; bf16 with fp32 master weights on a GPU. A step has the same packed
samples for every number of visual tokens. Text lengths follow the real-text mix (benchmarks/data/real_text.yaml), and
captions in the first stage. Forward, backward, clipping and AdamW use only torch; neither DeepSpeed nor data is needed.
Contenders alternate; figures are medians. MFU is computed by model/training/monitor/flops.py.
"""

import argparse
import statistics
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlamaConfig

from benchmarks.measure import parser, show
from model import HoneybeeConfig, HoneybeeForConditionalGeneration
from model.training.data.collate import Batch, Collator
from model.training.data.shard_reader import EmbeddedImage, Example
from model.training.engine.optimizer import freeze
from model.training.engine.packed_attention import NAME as PACKED
from model.training.engine.packed_attention import Examples
from model.training.monitor.flops import Flops, peak_tflops

IMAGE, PAD, VOCABULARY = 31_999, 0, 32_000
STAGES = {"pretrain": ["projector"], "finetune": ["projector", "llm"]}
# Text tokens of a sample: minimum, every twentieth of the distribution and maximum, of the mix and of captions.
LENGTHS = {
    "finetune": [52, 56, 59, 68, 69, 70, 72, 73, 74, 75, 76, 77, 79, 81, 85, 92, 140, 175, 243, 293, 968],
    "pretrain": [8, 12, 14, 16, 17, 18, 20, 21, 22, 23, 24, 26, 27, 29, 31, 33, 36, 40, 46, 56, 120],
}
SUPERVISED = {"finetune": 0.25, "pretrain": 1.0}  # of the text
SIZES: dict[str, dict[str, Any]] = {
    "1b": {
        "llm": {
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "num_hidden_layers": 22,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
        },
        "vision": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
        "projector": {},
    },
    "small": {  # for --toy
        "llm": {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 2, "num_attention_heads": 4},
        "vision": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
        "projector": {"hidden_size": 64, "depth": 1},
    },
}


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    options_of.add_argument("--size", default="1b", choices=list(SIZES))
    options_of.add_argument("--image-tokens", type=int, nargs="+", default=[144, 256])
    options_of.add_argument("--stages", nargs="+", default=list(STAGES), choices=list(STAGES))
    options_of.add_argument("--samples", type=int, default=128, help="in a step")
    options_of.add_argument("--max-tokens", type=int, default=2048, help="of a packed sequence")
    options_of.add_argument("--micro-batch", type=int, default=4, help="packed sequences in a forward pass")
    options_of.add_argument("--gradient-checkpointing", action="store_true")
    options_of.add_argument("--rounds", type=int, default=10)
    options = options_of.parse_args()
    if options.toy:
        options.device, options.size, options.samples, options.rounds = "cpu", "small", 4, 1
        options.image_tokens, options.max_tokens = [16, 64], 1200
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if options.device == "cuda" else "CPU"
    for stage in options.stages:
        runs = [Run(stage, tokens, options, device) for tokens in options.image_tokens]
        for round in range(options.rounds + 2):
            for run in runs:
                took = run.step()
                if round > 1:  # the first two warm up
                    run.seconds.append(took)
        peak = peak_tflops(name)
        rows = [run.row(runs[0], peak) for run in runs]
        show(f"A step of {stage}, {name}, size {options.size}, {options.samples} samples", rows)


class Run:
    """One stage with one number of visual tokens."""

    def __init__(self, stage: str, image_tokens: int, options: argparse.Namespace, device: torch.device):
        torch.manual_seed(0)
        size = SIZES[options.size]
        config = HoneybeeConfig(
            vision_config=CLIPVisionConfig(**size["vision"], patch_size=14, image_size=224),
            text_config=LlamaConfig(**size["llm"], vocab_size=VOCABULARY, max_position_embeddings=4096),
            projector={"type": "c-abstractor", "num_tokens": image_tokens, "settings": size["projector"]},
            image_token_id=IMAGE,
        )
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        with device:
            model: Any = HoneybeeForConditionalGeneration(config)
        freeze(model.to(dtype).train(), STAGES[stage])
        model.llm.set_attn_implementation(PACKED)
        if options.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        self.model, self.device, self.image_tokens = model, device, image_tokens
        self.batches = [batch.to(device) for batch in batches(stage, image_tokens, dtype, options)]
        self.supervised = sum(sum(batch.supervised) for batch in self.batches)
        count = Flops.count(config, STAGES[stage])
        self.flops = sum(count.of(b.lengths, sum(b.supervised), len(b.pixel_values)) for b in self.batches)
        self.optimizer = Masters([p for p in model.parameters() if p.requires_grad])
        self.seconds: list[float] = []

    def step(self) -> float:
        wait = torch.cuda.synchronize if self.device.type == "cuda" else lambda: None
        wait()
        start = time.perf_counter()
        for batch in self.batches:
            loss: Tensor = self.model(
                input_ids=batch.input_ids,
                position_ids=batch.position_ids,
                pixel_values=batch.pixel_values,
                labels=batch.labels,
                num_items_in_batch=self.supervised,
                use_cache=False,
                **Examples.of(batch.position_ids.cpu(), self.device).inputs(),
            ).loss
            loss.backward()
        self.optimizer.step()
        wait()
        return time.perf_counter() - start

    def row(self, first: "Run", peak: float | None) -> dict[str, str]:
        """peak: TFLOP/s of the device, None if unknown."""
        middle = statistics.median(self.seconds)
        tokens = sum(batch.num_tokens for batch in self.batches)
        ratio = statistics.median(a / b for a, b in zip(self.seconds, first.seconds, strict=True))
        return {
            "M": str(self.image_tokens),
            "positions used": f"{tokens / sum(batch.input_ids.numel() for batch in self.batches):.1%}",
            "ms a step": f"{1e3 * middle:,.0f}",
            "÷ the first": f"{ratio:.2f}",
            "tokens/s": f"{tokens / middle:,.0f}",
            "supervised tokens/s": f"{self.supervised / middle:,.0f}",
            "TFLOP/s": f"{self.flops / middle / 1e12:.2f}",
            "MFU": f"{self.flops / middle / peak / 1e12:.1%}" if peak else "unknown",
        }


@dataclass
class Masters:
    """AdamW on fp32 copies of the parameters, as in mixed-precision training."""

    parameters: list[nn.Parameter]

    def __post_init__(self) -> None:
        self.copies = [nn.Parameter(p.detach().float()) for p in self.parameters]
        self.optimizer = torch.optim.AdamW(self.copies, 1e-5, fused=True)

    def step(self) -> None:
        for copy, parameter in zip(self.copies, self.parameters, strict=True):
            copy.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None
        nn.utils.clip_grad_norm_(self.copies, 1.0, foreach=True)
        self.optimizer.step()
        with torch.no_grad():
            for parameter, copy in zip(self.parameters, self.copies, strict=True):
                parameter.copy_(copy)
        self.optimizer.zero_grad()


def batches(stage: str, image_tokens: int, dtype: torch.dtype, options: argparse.Namespace) -> list[Batch]:
    """The samples of a step, each with one image of noise, packed in order."""
    rng = np.random.default_rng(0)
    cuts = LENGTHS[stage]
    lengths = np.interp(rng.random(options.samples) * (len(cuts) - 1), range(len(cuts)), cuts).astype(int)
    packs: list[list[Example]] = []
    room = 0
    for number, length in enumerate(lengths.tolist()):
        if length - 1 + image_tokens > room:
            packs.append([])
            room = options.max_tokens
        packs[-1].append(sample(stage, number, length, rng))
        room -= length - 1 + image_tokens
    collate = Collator(IMAGE, image_tokens, PAD, 4096, [stage])
    size, made = options.micro_batch, []
    for at in range(0, len(packs), size):
        rows = packs[at : at + size]
        count = sum(map(len, rows))
        made.append(collate(rows, torch.randn(count, 3, 224, 224).to(dtype), [False] * count))
    return made


def sample(stage: str, number: int, length: int, rng: np.random.Generator) -> Example:
    """The image is the second token; the last tokens are supervised."""
    ids = rng.integers(1, IMAGE, length)
    ids[1] = IMAGE
    mask = np.arange(length) >= length - max(1, int(SUPERVISED[stage] * (length - 2)))
    return Example(number, stage, number, ids, mask, (EmbeddedImage("", b"", ""),))


if __name__ == "__main__":
    main()
