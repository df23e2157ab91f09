"""What logits at supervised positions alone spare: `python benchmarks/logits.py [--device cuda] [--dtype bf16]`.

A step forward and backward of a Honeybee model whose language model has Vicuna's vocabulary (32,000), half of the 7B's
width (2,048) and one layer, so that what is measured is the head and the loss; one sequence of 2,048 tokens, a picture
in it. Beside it the same model with logits at every position (`return_logits`), as transformers' own llava has them.
"""

import argparse
import sys

import torch
from measure import markdown
from passes import compare
from transformers import CLIPVisionConfig, LlamaConfig

from model import HoneybeeConfig, HoneybeeForConditionalGeneration

LENGTH, VOCABULARY, WIDTH, TOKENS = 2048, 32_000, 2048, 144
SUPERVISED = (0.05, 0.5)  # of the text


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    dtype = torch.float32 if arguments.dtype == "fp32" else torch.bfloat16
    model = HoneybeeForConditionalGeneration(configuration()).to(arguments.device, dtype).train()
    ids = torch.randint(1, VOCABULARY, (1, LENGTH), device=arguments.device)
    ids[:, 1 : TOKENS + 1] = model.config.image_token_id
    batch = {"input_ids": ids, "pixel_values": torch.randn(1, 3, 224, 224, device=arguments.device)}
    rows = []
    for what, trained in (("first: projector", False), ("second: projector and language model", True)):
        model.llm.requires_grad_(trained)
        for share in SUPERVISED:
            first = LENGTH - round((LENGTH - TOKENS - 1) * share)
            labels = ids.masked_fill(torch.arange(LENGTH, device=ids.device) < first, -100)
            found = compare(
                lambda labels=labels: model(**batch, labels=labels).loss,
                lambda labels=labels: model(**batch, labels=labels, return_logits=True).loss,
                list(model.parameters()),
                arguments.rounds,
            )
            rows.append({"stage, what trains": what, "supervised": f"{100 * share:.0f} %", **found})
            print(rows[-1], file=sys.stderr, flush=True)
    print(f"{arguments.device}, {arguments.dtype}, torch {torch.__version__}\n\n{markdown(rows)}")


def configuration() -> HoneybeeConfig:
    """The smallest encoder and projector of the right shapes; they cost next to nothing here."""
    return HoneybeeConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1, patch_size=14
        ),
        text_config=LlamaConfig(
            hidden_size=WIDTH,
            intermediate_size=1024,
            num_hidden_layers=1,
            num_attention_heads=16,
            vocab_size=VOCABULARY,
            max_position_embeddings=LENGTH,
        ),
        projector={"type": "c-abstractor", "num_tokens": TOKENS, "settings": {"hidden_size": 64, "depth": 1}},
        image_token_id=0,
    )


if __name__ == "__main__":
    main()
