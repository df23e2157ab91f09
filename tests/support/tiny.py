"""A recipe that is small enough for tests."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

_TRAIN: dict[str, Any] = {
    "steps": 3,
    "global_batch": 8,
    "micro_batch": 8,
    "warmup_steps": 1,
    "precision": "fp32",
    "zero_stage": 0,  # with ZeRO, each rank takes seconds longer to start
    "gradient_checkpointing": False,
    "log_every": 1,
}
TINY: dict[str, Any] = {
    "name": "tiny",
    "sample": {"scenes": 60, "held_out": 12},
    "backbones": {"train": {"image_size": 32, "vision_steps": 1, "llm_steps": 1}},
    "model": {"projector": {"type": "c-abstractor", "num_tokens": 4, "settings": {"hidden_size": 32, "depth": 1}}},
    "datasets": {
        "blipcapfilt": {"annotations": "BLIP"},
        "coyo100m": {"annotations": "COYO"},
        "vqav2": {"annotations": "VQAv2", "images": "VQAv2/images", "max_turns": 4, "dedup": {"rule": "answer"}},
        "refcoco": {"annotations": "refcoco/annotations", "images": "coco/images/train2014"},
    },
    "pretrain": {
        "data": {
            "weights": {"blipcapfilt": 0.5, "coyo100m": 0.5},
            "templates": "plain",
            "chat": "caption",
            "max_text_tokens": 128,
            "shard_mib": 0.01,
        },
        "train": {"trains": ["projector"], **_TRAIN},
    },
    "finetune": {
        "data": {"weights": {"vqav2": 0.75, "refcoco": 0.25}, "max_text_tokens": 256, "shard_mib": 0.01},
        "train": _TRAIN,
    },
    "launch": {"ranks": 1, "device": "cpu", "threads": 1},
    "evaluation": {
        "benchmarks": {
            "pope": {"path": "POPE", "images": "POPE/images"},
            "mmbench": {"path": "MMBench/mmbench_dev.tsv"},
        },
        "shuffled_control": True,
    },
}

WriteRecipe = Callable[..., Path]


def write_tiny(root: Path, changes: dict[str, Any]) -> Path:
    """Writes the tiny recipe with changes (slash-separated key → value; None removes the key); returns its path."""
    content = copy.deepcopy(TINY)
    content["paths"] = {"store": str(root / "store"), "runs": str(root / "runs"), "data": str(root / "data")}
    for dotted, value in changes.items():
        *parents, last = dotted.split("/")
        part = content
        for parent in parents:
            part = part[parent]
        if value is None:
            del part[last]
        else:
            part[last] = value
    path = root / f"{content['name']}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path
