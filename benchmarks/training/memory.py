"""The memory estimate of `--dry-run` against what training takes.

    python -m benchmarks.training.memory [NAME …] [--device cuda] [--phases]

Each setting trains a few real steps, every rank in its own process (memory_rank.py), on samples that fill
`max_text_tokens`, as the estimate assumes. On the CPU the peak is that of the resident set, which includes the
estimate's line for Python and its libraries; on a GPU it is what torch allocated.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from benchmarks import toy
from benchmarks.measure import last_line, parser, show, working
from benchmarks.training.memory_world import write_backbones, write_shards
from flows.preflight.memory import Content, pass_peak, pass_shape, rank_bytes, sizes_of
from flows.recipe.data import Data
from model import HoneybeeConfig
from model.training.settings import Train

GIB = 2**30
LLM = {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "vocab_size": 32_000,
}
WIDE = {**LLM, "num_hidden_layers": 2, "vocab_size": 100_000}
DEEP = {**LLM, "num_hidden_layers": 12, "vocab_size": 1_000}
VISION = {
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "patch_size": 14,
}
PROJECTOR = {"type": "c-abstractor", "num_tokens": 64, "settings": {"hidden_size": 384, "depth": 2}}
STEPS = 2
BASE: dict[str, Any] = {
    "llm": LLM,
    "vision": VISION,
    "projector": PROJECTOR,
    "ranks": 1,
    "text_tokens": 320,
    "supervised": 0.5,
    "train": {
        "trains": ["projector", "llm"],
        "steps": STEPS,
        "warmup_steps": 0,
        "global_batch": 2,
        "micro_batch": 2,
        "precision": "fp32",
        "zero_stage": 0,
        "gradient_checkpointing": False,
        "log_every": 1,
    },
}
ZERO_2 = {"zero_stage": 2, "precision": "bf16"}
SETTINGS: dict[str, dict[str, Any]] = {  # differences from BASE, or from its `train`
    "projector only": {"trains": ["projector"]},
    "projector only, bf16, checkpointing": {
        "trains": ["projector"],
        "precision": "bf16",
        "gradient_checkpointing": True,
    },
    "all": {},
    "all, ZeRO-2, accumulated, 2 ranks": {"ranks": 2, "zero_stage": 2, "global_batch": 8},
    "all, bf16": {"precision": "bf16"},
    "all, bf16, ZeRO-2": ZERO_2,
    "all, bf16, ZeRO-2, accumulated, 2 ranks": {**ZERO_2, "ranks": 2, "global_batch": 8},
    "all, bf16, ZeRO-3, 2 ranks": {**ZERO_2, "zero_stage": 3, "ranks": 2, "global_batch": 4},
    "12 layers": {"llm": DEEP, "global_batch": 4, "micro_batch": 4},
    "12 layers, checkpointing": {"llm": DEEP, "gradient_checkpointing": True, "global_batch": 4, "micro_batch": 4},
    "vocabulary of 100,000": {"llm": WIDE},
    "packs of 1,536": {"packing": {"max_tokens": 1536}, "global_batch": 1, "micro_batch": 1},
    "packs of 1,536, attention packed": {
        "packing": {"max_tokens": 1536},
        "attention": "packed",
        "global_batch": 1,
        "micro_batch": 1,
    },
    "LoRA, ZeRO-2": {"lora": {}, "zero_stage": 2},
}
TOY = {"toy": {"llm": toy.LLM, "vision": toy.VISION, "projector": toy.PROJECTOR, "text_tokens": 32}}


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("names", nargs="*", metavar="NAME", help=f"settings: {'; '.join(SETTINGS)} (default: all)")
    options_of.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options_of.add_argument("--phases", action="store_true", help="print the peak of each phase too")
    options = options_of.parse_args()
    rows = []
    for name, changes in (TOY if options.toy else SETTINGS).items():
        if options.names and name not in options.names:
            continue
        setting = settled(changes)
        with working(options) as workdir:
            place = workdir / "memory"
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            job = write_job(setting, place, options.device)
            parts = estimated(setting, place, options.device)
            peaks = run(job, setting["ranks"])
        rows.append(row(name, parts, peaks))
        print(rows[-1], file=sys.stderr, flush=True)
        if options.phases:
            shown = {phase: f"{bytes / GIB:.3f}" for phase, bytes in peaks.items()}
            print(shown, {kind: f"{bytes / GIB:.3f}" for kind, bytes in parts.items()}, file=sys.stderr, flush=True)
    show(f"Memory of training, estimated ÷ measured, {options.device}", rows)


def settled(changes: dict[str, Any]) -> dict[str, Any]:
    """BASE with these changes."""
    train = {key: value for key, value in changes.items() if key not in BASE}
    return {**BASE, **changes, "train": {**BASE["train"], **train}}


def write_job(setting: dict[str, Any], place: Path, device: str) -> Path:
    """Writes backbones, shards and job.json into the directory `place`; returns the path of job.json."""
    train = setting["train"]
    # As in recipes: published weights have half precision.
    write_backbones(place, setting["llm"], setting["vision"], "bfloat16")
    positions = setting["text_tokens"] + setting["projector"]["num_tokens"]
    per_pack = train["packing"]["max_tokens"] // positions if "packing" in train else 1
    count = train["global_batch"] * train["steps"] * per_pack
    write_shards(place / "shards", place / "llm", count, setting["text_tokens"], setting["supervised"])
    job = {
        "stage": "measured",
        "shards": str(place / "shards"),
        "init": {
            "vision": str(place / "vision"),
            "llm": str(place / "llm"),
            "tokenizer": str(place / "llm"),
            "projector": setting["projector"],
        },
        "train": train,
        "output": str(place / "output"),
        "work": str(place / "work"),
        "device": device,
    }
    path = place / "job.json"
    path.write_text(json.dumps(job))
    return path


def run(job: Path, ranks: int) -> dict[str, int]:
    """The peaks of the rank that took most memory. Raises RuntimeError if a rank fails."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "benchmarks.training.memory_rank", str(job)]
    processes = [
        subprocess.Popen(
            command,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    printed = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise RuntimeError(f"{job}: exit codes {[process.returncode for process in processes]}")
    found = [last_line(text) for text in printed]
    return max(found, key=lambda peaks: max(peaks.values()))


def estimated(setting: dict[str, Any], place: Path, device: str) -> dict[str, float]:
    config = HoneybeeConfig(
        vision_config=AutoConfig.from_pretrained(place / "vision"),
        text_config=AutoConfig.from_pretrained(place / "llm"),
        projector=setting["projector"],
    )
    model, train = sizes_of(config), Train.model_validate(setting["train"])
    data = Data.model_validate({"weights": {"made": 1}, "max_text_tokens": setting["text_tokens"]})
    shape = pass_shape(model, data, train, Content(setting["supervised"]))
    return rank_bytes(model, train, setting["ranks"], shape, pass_peak(model, train, shape), device)[1]


def row(name: str, parts: dict[str, float], peaks: dict[str, int]) -> dict[str, str]:
    most = max(peaks.values())
    total = sum(parts.values())
    return {
        "setting": name,
        "estimated GiB": f"{total / GIB:.2f}",
        "measured GiB": f"{most / GIB:.2f}",
        "ratio": f"{total / most:.2f}",
        "ratio beyond the start": f"{(total - peaks['start']) / (most - peaks['start']):.2f}",
    }


if __name__ == "__main__":
    main()
