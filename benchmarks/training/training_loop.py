"""What the stage's training loop costs over bare PyTorch.

    python -m benchmarks.training.training_loop JOB [--steps 20] [--rounds 7]

JOB is the job.json of a trained stage (store/models/…, see runs/RECIPE/latest). The same batches, taken from its loader
beforehand, go through the stage's own step (DeepSpeed engine, loss by dataset, the job's callbacks except evaluation
and Weights & Biases) and through forward, cross-entropy, backward, clipping and AdamW of a copy of the model. Blocks of
steps alternate, so that other load on the machine affects both alike; the ratio is the median over the rounds. One
rank, fp32, ZeRO-0.
"""

import contextlib
import copy
import shutil
import statistics
import time
from pathlib import Path

import torch
from torch.nn import functional as F

from benchmarks.measure import parser, show, working
from benchmarks.training.memory import TOY, settled, write_job
from model import distributed
from model.training import signals, stage
from model.training.data.collate import IGNORE_INDEX, Batch
from model.training.engine.optimizer import adamw, freeze
from model.training.job import load_job
from model.training.loop import Loop


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("job", type=Path, nargs="?", metavar="JOB")
    options_of.add_argument("--steps", type=int, default=20)
    options_of.add_argument("--rounds", type=int, default=7)
    options = options_of.parse_args()
    with working(options) as workdir:
        place = workdir / "training-loop"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        if options.toy:
            options.job, options.rounds, options.steps = write_job(settled(TOY["toy"]), place, "cpu"), 1, 2
        if options.job is None:
            options_of.error("JOB is required")
        found = run(options.job, options.steps, options.rounds, place)
    ratio = statistics.median(a / b for a, b in zip(found["loop"], found["bare"], strict=True))
    took = {name: f"{1e3 * statistics.median(values):.1f}" for name, values in found.items()}
    row = {"loop, ms a step": took["loop"], "bare, ms a step": took["bare"], "loop ÷ bare": f"{ratio:.3f}"}
    show(f"The training loop, {options.steps} steps, {options.rounds} rounds", [row])


def run(path: Path, num_steps: int, rounds: int, place: Path) -> dict[str, list[float]]:
    """Seconds of a step in each round, of the loop and of bare PyTorch."""
    job = load_job(path)
    places = {"output": place / "loop-output", "work": place / "loop-work"}
    without = {"evaluate": None, "evaluate_every": None, "wandb": None}
    train = job.train.model_copy(update={"precision": "fp32", "zero_stage": 0, "log_every": 10, **without})
    job = job.model_copy(update={**places, "train": train, "device": "cpu"})
    found: dict[str, list[float]] = {"loop": [], "bare": []}
    job.work.mkdir()

    def measure(loop: Loop) -> bool:
        model = copy.deepcopy(loop.engine.model)
        freeze(model, train.trains)
        optimizer = adamw(model, train)
        loop.start()
        with contextlib.closing(iter(loop.loader)) as steps:  # closed: it reads nothing ahead any more
            batches = [next(steps) for _ in range(num_steps)]
        done = 0
        for round in range(rounds + 1):
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
                    found[name].append(took / num_steps)
        return False

    Loop.train = measure  # type: ignore[assignment, method-assign]
    stage.run(job)
    distributed.shutdown()
    return found


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
