"""Writes the model card: the README.md of a model directory, which can be uploaded to a hub unchanged."""

from pathlib import Path
from typing import Any

import yaml

from model.configuration import HoneybeeConfig
from model.training.settings import Lora, describe_trained

CARD = "README.md"
LOCAL_WEIGHTS = "weights of a local directory"  # the name of a part that did not come from a hub

_USE = """\
The model needs the Honeybee package (`pip install` its source tree); importing a class from `model` registers the
architecture with transformers.

```python
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from model import HoneybeeConfig  # registers the Auto classes

directory = "."  # this folder, or its name on a hub
honeybee = AutoModelForImageTextToText.from_pretrained(directory, dtype="auto")
processor = AutoProcessor.from_pretrained(directory)
content = [{"type": "image", "image": Image.open("image.jpg")}, {"type": "text", "text": "What is in the image?"}]
inputs = processor.apply_chat_template(
    [{"role": "user", "content": content}],
    add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
)
answer = honeybee.generate(**inputs, max_new_tokens=100)[0, inputs["input_ids"].shape[1]:]
print(processor.decode(answer, skip_special_tokens=True))
```

On the command line: `honeybee chat DIRECTORY image.jpg`, or `honeybee serve DIRECTORY` for OpenAI clients."""

_LIMITS = """\
The model can be wrong about what an image shows, and about everything else. Each of its parts and each dataset keeps
its own licence; the model is bound by all of them."""


def backbone_name(name: str) -> str:
    """Returns the name of a backbone for the card: its hub name, or LOCAL instead of a local path."""
    return LOCAL_WEIGHTS if Path(name).exists() else name


def model_card(config: HoneybeeConfig, facts: dict[str, Any]) -> str:
    """Returns the text of the model card.

    facts, as in manifest.json: `parts`, the names of vision and llm; `stages`, for each stage its name, steps,
    global_batch, packed, trains, datasets (name → share) and optionally lora.
    """
    vision, text, projector = config.vision_config, config.text_config, config.projector
    parts, size = facts["parts"], vision.image_size
    head = {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["honeybee", "vision-language", projector["type"]],
        "base_model": [name for name in parts.values() if name != LOCAL_WEIGHTS],
    }
    rows = {
        "vision encoder": f"{vision.model_type}, {parts['vision']}; images of {size}×{size} pixels, "
        f"{config.num_features} features from hidden state {config.vision_layer}",
        "projector": f"{projector['type']}, {config.num_image_tokens} visual tokens per image",
        "language model": f"{text.model_type}, {parts['llm']}",
    }
    sections = [
        f"---\n{yaml.safe_dump({key: value for key, value in head.items() if value}, sort_keys=False)}---\n",
        f"# Honeybee with a {projector['type']}, {config.num_image_tokens} visual tokens\n",
        "A vision-language model following the paper [Honeybee: Locality-enhanced Projector for Multimodal LLM]"
        "(https://arxiv.org/abs/2312.06742), made of a vision encoder, a projector and a language model.\n",
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
            "\nThe adapters of the last stage are merged into the weights. `adapter/` also holds them separately, in\n"
            "peft's format, for the language model that the stage started from; it does not include the projector."
        )
    return "\n".join(lines)
