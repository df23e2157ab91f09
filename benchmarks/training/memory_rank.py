"""One rank of a measured job; memory.py starts it.

    python -m benchmarks.training.memory_rank JOB.json     with the environment that torchrun sets

Prints on its last line, as JSON, the peak of each phase in bytes: on the CPU the resident set of the process, as `top`
shows it, and that after the imports (`start`); on a GPU torch.cuda.max_memory_allocated.
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
from model.training import stage
from model.training.engine.checkpoint import Checkpoints
from model.training.engine.deepspeed_engine import Engine
from model.training.job import load_job


def resident(key: str) -> int:
    """This process's resident set in bytes: VmRSS is the current one, VmHWM the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{key}:")).split()[1]) * 1024


class Peaks:
    """The peak of each phase, from the kernel's high-water mark, which is reset between phases and misses nothing."""

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
        """Makes every call of that function a phase; the time between two phases counts as `between`."""
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
    peaks.watch(stage, "load", "load")
    peaks.watch(Engine, "__init__", "engine")
    peaks.watch(Engine, "forward", "forward")
    peaks.watch(Engine, "backward", "backward")
    peaks.watch(Engine, "step", "step")
    peaks.watch(Checkpoints, "save", "checkpoint")
    peaks.watch(stage, "save_model", "save")
    code = stage.run(job)
    peaks.end("between")
    print(json.dumps(peaks.of))
    sys.exit(code)


if __name__ == "__main__":
    main()
