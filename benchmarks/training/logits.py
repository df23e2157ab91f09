"""What it saves to compute logits only at supervised positions.

    python -m benchmarks.training.logits [--device cuda] [--dtype bf16]

A step forward and backward of a Honeybee model whose language model has Vicuna's vocabulary (32,000), half the width of
the 7B model (2,048) and one layer, so that the head and the loss dominate; one sequence of 2,048 tokens, with an
image. The peer is the same model with logits at every position (`return_logits`), as in transformers' LLaVA.
"""

import sys

import torch
from transformers import CLIPVisionConfig, LlamaConfig

from benchmarks.measure import parser, show
from benchmarks.training.passes import compare
from model import HoneybeeConfig, HoneybeeForConditionalGeneration

LENGTH, VOCABULARY, WIDTH, TOKENS = 2048, 32_000, 2048, 144
SUPERVISED = (0.05, 0.5)  # of the text


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options_of.add_argument("--dtype", default="fp32", choices=["fp32", "bf16"])
    options_of.add_argument("--rounds", type=int, default=3)
    arguments = options_of.parse_args()
    length, vocabulary, width = LENGTH, VOCABULARY, WIDTH
    if arguments.toy:
        length, vocabulary, width, arguments.device, arguments.rounds = 256, 500, 64, "cpu", 1
    torch.manual_seed(0)
    dtype = torch.float32 if arguments.dtype == "fp32" else torch.bfloat16
    config = configuration(length, vocabulary, width)
    model = HoneybeeForConditionalGeneration(config).to(arguments.device, dtype).train()
    ids = torch.randint(1, vocabulary, (1, length), device=arguments.device)
    ids[:, 1 : TOKENS + 1] = model.config.image_token_id
    batch = {"input_ids": ids, "pixel_values": torch.randn(1, 3, 224, 224, device=arguments.device)}
    rows = []
    for what, trained in (("first: projector", False), ("second: projector and language model", True)):
        model.llm.requires_grad_(trained)
        for share in SUPERVISED:
            first = length - round((length - TOKENS - 1) * share)
            labels = ids.masked_fill(torch.arange(length, device=ids.device) < first, -100)
            found = compare(
                lambda labels=labels: model(**batch, labels=labels).loss,
                lambda labels=labels: model(**batch, labels=labels, return_logits=True).loss,
                list(model.parameters()),
                arguments.rounds,
            )
            rows.append({"stage, what trains": what, "supervised": f"{100 * share:.0f} %", **found})
            print(rows[-1], file=sys.stderr, flush=True)
    show(f"Logits at supervised positions ÷ at every position, {arguments.device}, {arguments.dtype}", rows)


def configuration(length: int, vocabulary: int, width: int) -> HoneybeeConfig:
    """The smallest encoder and projector of the right shapes; their cost is negligible."""
    return HoneybeeConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1, patch_size=14
        ),
        text_config=LlamaConfig(
            hidden_size=width,
            intermediate_size=1024,
            num_hidden_layers=1,
            num_attention_heads=16,
            vocab_size=vocabulary,
            max_position_embeddings=length,
        ),
        projector={"type": "c-abstractor", "num_tokens": TOKENS, "settings": {"hidden_size": 64, "depth": 1}},
        image_token_id=0,
    )


if __name__ == "__main__":
    main()
