"""Scalars for Weights & Biases, of which a recipe may ask; nothing is imported, and no network used, unless it does.

WANDB_MODE=offline writes them to the work directory alone, from where `wandb sync` brings them up later. The id of the
run is kept there, so that a stage that is resumed goes on in the same one. Steps that were logged before it was stopped
and are trained again are left out by wandb, whose steps only rise.
"""

import importlib.util
import logging
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.training.job import JobError, Wandb
from pipelines.store import write_atomic

log = logging.getLogger("honeybee.training")


def check_installed() -> None:
    """Raises JobError where the package is missing."""
    if importlib.util.find_spec("wandb") is None:
        raise JobError("the package wandb is not installed: `pip install 'honeybee-mllm[wandb]'`, or leave wandb out")


class WandbRun:
    """One run; see https://docs.wandb.ai/ref/python/init."""

    def __init__(self, settings: Wandb, work: Path, config: Mapping[str, Any]):
        """config: what the run's page tells of its settings. Raises JobError where wandb is missing or refuses."""
        check_installed()
        import wandb

        id_file = work / "wandb-id"
        if not id_file.is_file():
            work.mkdir(parents=True, exist_ok=True)
            write_atomic(id_file, uuid.uuid4().hex[:8])
        try:
            self._run = wandb.init(
                project=settings.project,
                entity=settings.entity,
                name=settings.name,
                id=id_file.read_text(),
                resume="allow",
                dir=str(work),
                config=dict(config),
                settings=wandb.Settings(console="off"),  # the lines of a rank are read by who launched it
            )
        except wandb.Error as error:
            raise JobError(f"train.wandb: {error}. `wandb login` once, or set WANDB_MODE=offline") from None
        log.info("wandb run %s in %s", id_file.read_text(), work)

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        self._run.log(dict(scalars), step=step)

    def close(self) -> None:
        self._run.finish()
