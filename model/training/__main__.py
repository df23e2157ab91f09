"""Runs `python -m model.training JOB.json`, as a single process or as each rank under torchrun (see job.py)."""

import logging
import os
import sys
import warnings
from pathlib import Path

from model import lifeline
from model.distributed import choose_device
from model.training.job import load_job
from model.training.settings import JobError


def main() -> int:
    if len(sys.argv) != 2:
        raise JobError("usage: python -m model.training JOB.json")
    lifeline.hold()
    rank = int(os.environ.get("RANK", "0"))
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout, force=True)
    logging.getLogger("honeybee").setLevel(logging.INFO if rank == 0 else logging.WARNING)
    # DeepSpeed uses deprecated torch names, which would print hundreds of warnings.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    job = load_job(Path(sys.argv[1]))
    choose_device(job.device)
    from model.training.stage import run  # imports DeepSpeed, which must know the device

    return run(job)


if __name__ == "__main__":
    sys.exit(main())
