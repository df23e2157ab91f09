"""Makes tiny jobs for the training tests."""

import copy
from pathlib import Path
from typing import Any


def make_job(backbones: Path, shards: Path, directory: Path, **train: Any) -> dict[str, Any]:
    """Returns a job that trains projector and llm of the tiny backbones for 8 steps of 8 samples, in fp32."""
    return {
        "stage": "finetune",
        "seed": 1,
        "shards": str(shards),
        "init": {
            "vision": str(backbones / "vision"),
            "llm": str(backbones / "llm"),
            "tokenizer": str(backbones / "llm"),
            "projector": {"type": "linear", "num_tokens": 16},
        },
        "train": {
            "trains": ["projector", "llm"],
            "steps": 8,
            "global_batch": 8,
            "micro_batch": 8,
            "learning_rate": 3e-3,
            "min_learning_rate": 3e-4,
            "warmup_steps": 2,
            "weight_decay": 0.01,
            "precision": "fp32",
            "zero_stage": 0,
            "gradient_checkpointing": False,
            "save_every": 1000,
            "log_every": 1,
            **train,
        },
        "output": str(directory / "output"),
        "work": str(directory / "work"),
        "device": "cpu",
    }


def elsewhere(job: dict[str, Any], directory: Path, **train: Any) -> dict[str, Any]:
    """Returns the same job in other directories, with some settings of `train` changed."""
    changed = copy.deepcopy(job)
    changed["train"] |= train
    directory.mkdir(parents=True, exist_ok=True)
    return changed | {"output": str(directory / "output"), "work": str(directory / "work")}
