"""Logs scalars to Weights & Biases if a recipe enables it; otherwise nothing is imported and no network is used.

With WANDB_MODE=offline they are written only to the work directory, from which `wandb sync` can upload them later. The
run id is stored there, so that a resumed stage continues the same run. wandb ignores steps that were logged before the
stage was stopped and are trained again, since its steps must increase.
"""

import logging
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.training.callback import Callback
from model.training.monitor.metrics import scalars
from model.training.settings import JobError, Wandb
from pipelines.core.files import write_atomic

log = logging.getLogger("honeybee.training")


class WandbRun(Callback):
    """One run, on the first rank only; see https://docs.wandb.ai/ref/python/init."""

    def __init__(self, settings: Wandb, work: Path, config: Mapping[str, Any]):
        """config: the settings shown on the page of the run. Raises JobError if wandb is missing or fails to start."""
        settings.check_installed()
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
                settings=wandb.Settings(console="off"),  # the launcher reads the output of a rank
            )
        except wandb.Error as error:
            raise JobError(f"train.wandb: {error}. Run `wandb login` once, or set WANDB_MODE=offline") from None
        log.info("wandb run %s in %s", id_file.read_text(), work)

    def on_metrics(self, line: Mapping[str, Any]) -> None:
        self._run.log(scalars(line), step=line["step"])

    def on_end(self) -> None:
        self._run.finish()
