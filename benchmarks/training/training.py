"""What packing gains in training.

    python -m benchmarks.training.training REALDATA [--device cuda --size 1b] [--rounds 3]

One model trains on one step of the same samples of the real-text mix (benchmarks/data/real_text.yaml) in three layouts:
packed to 2,048 positions; one sample per row, padded to the longest of the batch; padded to the maximum length of 1,024
text tokens and the visual tokens, as the paper's authors do. Forward, backward and AdamW; tokens are real, images are
noise. Layouts alternate, so that other load on the machine affects all alike; ratios are medians over the rounds.
"""

import argparse
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPVisionConfig, LlamaConfig

from benchmarks import toy
from benchmarks.data.packing import TOY_SAMPLES, build
from benchmarks.measure import parser, show, working
from benchmarks.training.passes import timed
from model import HoneybeeConfig, HoneybeeForConditionalGeneration
from model.training.data.collate import IGNORE_INDEX, Batch, Collator
from model.training.data.shard_reader import EmbeddedImage, Example
from model.training.engine.packed_attention import NAME as PACKED
from model.training.engine.packed_attention import Examples
from pipelines.packing.plan import Lengths, Packing, make_plan
from pipelines.shards.manifest import read_shards_manifest

PAD, VOCABULARY = 0, 32_000
TEXT = 1024  # the maximum of text tokens in a sample
COLUMNS = ["index", "dataset", "example", "input_ids", "loss_mask", "num_images"]
SIZES: dict[str, dict[str, Any]] = {  # of the language model, which dominates: the encoder is small
    "toy": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2},
    "small": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 12},
    "1b": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 16},
}


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("realdata", type=Path, nargs="?", metavar="REALDATA")
    options_of.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options_of.add_argument("--size", default="small", choices=list(SIZES))
    options_of.add_argument("--samples", type=int, default=32, help="in a step")
    options_of.add_argument("--micro-batch", type=int, default=8, help="padded samples in a forward pass")
    options_of.add_argument("--max-tokens", type=int, default=2048, help="of a pack")
    options_of.add_argument("--image-tokens", type=int, default=144)
    options_of.add_argument("--rounds", type=int, default=3)
    options = options_of.parse_args()
    with working(options) as workdir:
        if options.toy:
            options.realdata, options.size, options.device = toy.realdata(workdir), "toy", "cpu"
            options.samples, options.micro_batch, options.rounds, options.image_tokens = 4, 2, 1, 16
        if options.realdata is None:
            options_of.error("REALDATA is required")
        folder = workdir / "packing"  # packing.py builds the same shards
        folder.mkdir(exist_ok=True)
        lengths = build(options.realdata.resolve(), folder, TOY_SAMPLES if options.toy else None)
        layouts = batches(lengths, options)
        image_token_id = read_shards_manifest(lengths.path.parent)["image_token_id"]
    model = honeybee(options, image_token_id).to(options.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-5, fused=True)
    seconds: dict[str, list[float]] = {name: [] for name in layouts}
    for round in range(options.rounds + 1):
        for name, passes in layouts.items():
            attention = PACKED if name == "packed" else "sdpa"
            run = partial(step, model, optimizer, passes, attention)
            took, _ = timed(run, torch.device(options.device))
            if round:  # the first warms up
                seconds[name].append(took)
    rows = [row(name, passes, seconds) for name, passes in layouts.items()]
    show(f"Packed and padded training, {options.device}, size {options.size}, {options.rounds} rounds", rows)


def honeybee(options: argparse.Namespace, image_token_id: int) -> HoneybeeForConditionalGeneration:
    torch.manual_seed(0)
    config = HoneybeeConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1, patch_size=14
        ),
        text_config=LlamaConfig(**SIZES[options.size], vocab_size=VOCABULARY, max_position_embeddings=4096),
        projector={
            "type": "c-abstractor",
            "num_tokens": options.image_tokens,
            "settings": {"hidden_size": 64, "depth": 1},
        },
        image_token_id=image_token_id,
    )
    return HoneybeeForConditionalGeneration(config)


def batches(lengths: Lengths, options: argparse.Namespace) -> dict[str, list[Batch]]:
    """layout → its forward passes over the same samples, which are those of the first packs of the mix."""
    plan = make_plan(lengths, Packing(max_tokens=options.max_tokens), options.image_tokens)
    packs, count = [], 0
    while count < options.samples:
        packs += plan.packs(len(packs), 1)
        count += len(packs[-1].samples)
    numbers = [int(number) for pack in packs for number in pack.samples]
    shards = read_shards_manifest(lengths.path.parent)
    table = pq.read_table(lengths.path.parent / shards["shards"][0]["file"], columns=COLUMNS)
    examples = {number: example(table.slice(number, 1).to_pylist()[0]) for number in numbers}
    collate = Collator(shards["image_token_id"], options.image_tokens, PAD, 4096, list(shards["datasets"]))
    most = TEXT + options.image_tokens

    def batch(rows: list[list[Example]]) -> Batch:
        members = [each for row in rows for each in row]
        images = torch.randn(sum(len(each.images) for each in members), 3, 224, 224)
        return collate(rows, images, [False] * len(members)).to(torch.device(options.device))

    size = options.micro_batch
    groups = [[[examples[n]] for n in numbers[at : at + size]] for at in range(0, len(numbers), size)]
    together = [batch([[examples[int(n)] for n in pack.samples]]) for pack in packs]
    return {
        "packed": together,
        "packed, attention: sdpa": together,
        "padded to the longest": [batch(group) for group in groups],
        "padded to the maximum": [padded(batch(group), most) for group in groups],
    }


def example(row: dict[str, Any]) -> Example:
    ids, mask = np.array(row["input_ids"]), np.array(row["loss_mask"])
    images = tuple(EmbeddedImage("", b"", "") for _ in range(row["num_images"]))
    return Example(row["index"], row["dataset"], row["example"], ids, mask, images)


def padded(batch: Batch, most: int) -> Batch:
    """The same batch with every row padded to `most` positions."""
    more = most - batch.input_ids.shape[1]
    last = batch.position_ids[:, -1:] + torch.arange(1, more + 1, device=batch.position_ids.device)
    return Batch(
        **{
            **vars(batch),
            "input_ids": F.pad(batch.input_ids, (0, more), value=PAD),
            "labels": F.pad(batch.labels, (0, more), value=IGNORE_INDEX),
            "position_ids": torch.cat([batch.position_ids, last], dim=1),
            "example_ids": torch.cat([batch.example_ids, batch.example_ids[:, -1:].expand(-1, more)], dim=1),
        }
    )


def step(model: Any, optimizer: torch.optim.Optimizer, passes: list[Batch], attention: str) -> None:
    supervised = sum(sum(batch.supervised) for batch in passes)
    model.llm.set_attn_implementation(attention)
    for batch in passes:
        more = Examples.of(batch.position_ids, batch.input_ids.device).inputs() if attention == PACKED else {}
        loss: Tensor = model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            pixel_values=batch.pixel_values,
            labels=batch.labels,
            num_items_in_batch=supervised,
            use_cache=False,
            **more,
        ).loss
        loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def row(name: str, passes: list[Batch], seconds: dict[str, list[float]]) -> dict[str, str]:
    tokens = sum(batch.num_tokens for batch in passes)
    supervised = sum(sum(batch.supervised) for batch in passes)
    positions = sum(batch.input_ids.numel() for batch in passes)
    middle = statistics.median(seconds[name])
    ratio = statistics.median(a / b for a, b in zip(seconds[name], seconds["packed"], strict=True))
    return {
        "layout": name,
        "positions used": f"{tokens / positions:.1%}",
        "tokens/s": f"{tokens / middle:,.0f}",
        "supervised tokens/s": f"{supervised / middle:,.0f}",
        "packed ÷ this": f"{ratio:.2f}" if name != "packed" else "",
    }


if __name__ == "__main__":
    main()
