"""What the stage's loop costs over bare PyTorch: `python benchmarks/training_loop.py JOB [--steps 20] [--rounds 7]`.

JOB: job.json of a trained stage, `runs/RECIPE/latest` has them under store/models. The same batches, taken from its
loader before, go through the stage's own step (DeepSpeed engine, loss by dataset, metrics, checks) and through forward,
cross-entropy, backward, clipping and AdamW of a copy of the model. Blocks of steps alternate, so that other load on the
machine meets both alike; the ratio is the median over the rounds. One rank, fp32, ZeRO-0.
"""

import argparse
import contextlib
import copy
import statistics
import tempfile
import time
from pathlib import Path

import torch
from measure import markdown
from torch.nn import functional as F

from model import distributed
from model.training import loop as training_loop
from model.training import signals, stage
from model.training.data.collate import IGNORE_INDEX, Batch
from model.training.engine.optimizer import adamw, freeze
from model.training.job import load_job


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        job = load_job(options.job)
        places = {"output": Path(folder) / "output", "work": Path(folder) / "work"}
        settings = {"precision": "fp32", "zero_stage": 0, "log_every": 10, "evaluate": None, "evaluate_every": None}
        train = job.train.model_copy(update=settings)
        job = job.model_copy(update={**places, "train": train, "device": "cpu"})
        found: dict[str, list[float]] = {"loop": [], "bare": []}
        job.work.mkdir()

        def measure(loop: training_loop.Loop) -> bool:
            model = copy.deepcopy(loop.engine.model)
            freeze(model, train.trains)
            optimizer = adamw(model, train)
            loop.start()
            with contextlib.closing(iter(loop.loader)) as steps:  # afterwards it reads nothing ahead
                batches = [next(steps) for _ in range(options.steps)]
            done = 0
            for round in range(options.rounds + 1):
                seconds = {}
                start = time.perf_counter()
                with signals.StopRequest() as stop:
                    for own in batches:
                        loop.step(done, own, stop)
                        done += 1
                seconds["loop"] = time.perf_counter() - start
                start = time.perf_counter()
                for own in batches:
                    bare(model, optimizer, own, train.clip_norm)
                seconds["bare"] = time.perf_counter() - start
                if round:  # the first warms up
                    for name, took in seconds.items():
                        found[name].append(took / options.steps)
            return False

        training_loop.Loop.train = measure  # type: ignore[assignment, method-assign]
        stage.run(job)
        distributed.shutdown()
    ratio = statistics.median(a / b for a, b in zip(found["loop"], found["bare"], strict=True))
    row = {name: f"{1e3 * statistics.median(values):.1f}" for name, values in found.items()}
    print(markdown([{"loop, ms a step": row["loop"], "bare, ms a step": row["bare"], "ratio": f"{ratio:.3f}"}]))


def bare(model: torch.nn.Module, optimizer: torch.optim.Optimizer, batches: list[Batch], clip: float) -> None:
    count = sum(sum(batch.supervised) for batch in batches)
    for batch in batches:
        targets = F.pad(batch.labels[:, 1:], (0, 1), value=IGNORE_INDEX)
        supervised = targets != IGNORE_INDEX
        logits = model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            pixel_values=batch.pixel_values,
            logits_to_keep=supervised,
            use_cache=False,
        ).logits
        (F.cross_entropy(logits, targets[supervised], reduction="sum") / count).backward()
    torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], clip)
    optimizer.step()
    optimizer.zero_grad()


if __name__ == "__main__":
    main()
