"""`python -m model.training JOB.json`, alone or in every rank under torchrun. See model/training/job.py for the job."""

import logging
import os
import sys
import warnings
from pathlib import Path

from model.ranks import choose_device
from model.training import lifeline
from model.training.job import JobError, load_job


def main() -> int:
    if len(sys.argv) != 2:
        raise JobError("usage: python -m model.training JOB.json")
    lifeline.hold()
    rank = int(os.environ.get("RANK", "0"))
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout, force=True)
    logging.getLogger("honeybee").setLevel(logging.INFO if rank == 0 else logging.WARNING)
    # DeepSpeed calls torch by names that torch is about to change: hundreds of lines.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    job = load_job(Path(sys.argv[1]))
    choose_device(job.device)
    from model.training.stage import run  # it imports DeepSpeed

    return run(job)


if __name__ == "__main__":
    sys.exit(main())
