"""One rank of a measured job: `python benchmarks/memory_rank.py JOB.json`, with the environment that torchrun gives.

Prints on its last line, as JSON, the peak of each phase in bytes: on the CPU the process's resident set, as `top` shows
it, and the one that was there after the imports (`start`); on a GPU torch.cuda.max_memory_allocated.
"""

import functools
import json
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from model.distributed import choose_device
from model.training import prepare, stage
from model.training.engine import export
from model.training.engine.checkpoint import Checkpoints
from model.training.engine.deepspeed_engine import Engine
from model.training.job import load_job


def resident(key: str) -> int:
    """VmRSS, what is resident, or VmHWM, the most that was, of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{key}:")).split()[1]) * 1024


class Peaks:
    """The highest point of each phase; the kernel's own high-water mark, set back in between, misses nothing."""

    def __init__(self, device: str):
        self.cuda = device == "cuda"
        self.of: dict[str, int] = {}
        self.of["start"] = 0 if self.cuda else resident("VmRSS")

    def begin(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")

    def end(self, phase: str) -> None:
        if self.cuda:
            torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() if self.cuda else resident("VmHWM")
        self.of[phase] = max(self.of.get(phase, 0), peak)

    def watch(self, owner: Any, name: str, phase: str) -> None:
        """Every call of that function is a phase; what comes before it, back to the last one, is `between`."""
        function: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(function)
        def watched(*arguments: Any, **options: Any) -> Any:
            self.end("between")
            self.begin()
            result = function(*arguments, **options)
            self.end(phase)
            self.begin()
            return result

        setattr(owner, name, watched)


def main() -> None:
    warnings.simplefilter("ignore")
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    job = load_job(Path(sys.argv[1]))
    peaks = Peaks(choose_device(job.device))
    peaks.watch(prepare, "load", "load")
    peaks.watch(Engine, "__init__", "engine")
    peaks.watch(Engine, "forward", "forward")
    peaks.watch(Engine, "backward", "backward")
    peaks.watch(Engine, "step", "step")
    peaks.watch(Checkpoints, "save", "checkpoint")
    peaks.watch(export, "save_model", "save")
    code = stage.run(job)
    peaks.end("between")
    print(json.dumps(peaks.of))
    sys.exit(code)


if __name__ == "__main__":
    main()
