"""The model card: a README.md in a model's directory, so that it can go to a hub as it is."""

from pathlib import Path
from typing import Any

import yaml

from model.configuration import HoneybeeConfig
from model.training.job import Lora, describe_trained

CARD = "README.md"
LOCAL = "weights of a local directory"  # what stands for a part that did not come from a hub

_USE = """\
It needs Honeybee's package (`pip install` of its source tree); importing a class of `model` makes the architecture
known to transformers.

```python
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from model import HoneybeeConfig  # makes the Auto classes know it

directory = "."  # this folder, or its name on a hub
honeybee = AutoModelForImageTextToText.from_pretrained(directory, dtype="auto")
processor = AutoProcessor.from_pretrained(directory)
content = [{"type": "image", "image": Image.open("picture.jpg")}, {"type": "text", "text": "What is in the picture?"}]
inputs = processor.apply_chat_template(
    [{"role": "user", "content": content}],
    add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
)
answer = honeybee.generate(**inputs, max_new_tokens=100)[0, inputs["input_ids"].shape[1]:]
print(processor.decode(answer, skip_special_tokens=True))
```

Or `honeybee chat DIRECTORY picture.jpg`, and `honeybee serve DIRECTORY` for OpenAI's clients."""

_LIMITS = """\
The model can be wrong about what a picture shows, and about everything else. Each of its parts and each dataset keeps
its own licence; what came of them is bound by all."""


def part_name(name: str) -> str:
    """How a card names a backbone: its hub name; never a path of the machine that trained it."""
    return LOCAL if Path(name).exists() else name


def model_card(config: HoneybeeConfig, facts: dict[str, Any]) -> str:
    """facts: `parts`, the names of vision and llm; `stages`, of each stage its name, steps, global_batch, packed,
    trains, datasets (name → share) and perhaps lora; as manifest.json has them."""
    vision, text, projector = config.vision_config, config.text_config, config.projector
    parts, size = facts["parts"], vision.image_size
    head = {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["honeybee", "vision-language", projector["type"]],
        "base_model": [name for name in parts.values() if name != LOCAL],
    }
    rows = {
        "vision encoder": f"{vision.model_type}, {parts['vision']}; images of {size}×{size} pixels, "
        f"{config.num_features} features from hidden state {config.vision_layer}",
        "projector": f"{projector['type']}, {config.num_image_tokens} visual tokens for an image",
        "language model": f"{text.model_type}, {parts['llm']}",
    }
    sections = [
        f"---\n{yaml.safe_dump({key: value for key, value in head.items() if value}, sort_keys=False)}---\n",
        f"# Honeybee with a {projector['type']}, {config.num_image_tokens} visual tokens\n",
        "A vision-language model after the paper [Honeybee: Locality-enhanced Projector for Multimodal LLM]"
        "(https://arxiv.org/abs/2312.06742): vision encoder, projector, language model.\n",
        "| part | |\n|---|---|\n" + "\n".join(f"| {name} | {text} |" for name, text in rows.items()) + "\n",
        f"## Use\n\n{_USE}\n",
        f"## Training\n\n{_training(facts['stages'])}\n",
        f"## Limits\n\n{_LIMITS}\n",
    ]
    return "\n".join(sections)


def _training(stages: list[dict[str, Any]]) -> str:
    lines = []
    for stage in stages:
        unit = "packed sequences" if stage["packed"] else "samples"
        lora = Lora.model_validate(stage["lora"]) if "lora" in stage else None
        shares = ", ".join(f"{name} {100 * share:.1f} %" for name, share in stage["datasets"].items())
        lines.append(
            f"- {stage['stage']}: {stage['steps']:,} steps of {stage['global_batch']:,} {unit}; "
            f"{describe_trained(stage['trains'], lora)} trained; shares of the samples: {shares}"
        )
    if stages and "lora" in stages[-1]:
        lines.append(
            "\nThe adapters of the last stage are merged into the weights. `adapter/` holds them apart, as peft reads\n"
            "them, for the language model that the stage began with; the projector is not in it."
        )
    return "\n".join(lines)
