"""The job of one stage: a JSON file with all its settings, validated before anything is loaded. Needs no torch."""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError, model_validator

from model.evaluation.interface import BenchmarkFiles
from model.image_fit import Fit
from model.training.settings import JobError, Loading, PeakTflops, PositiveInt, Settings, Train


class Projector(Settings):
    type: str
    num_tokens: PositiveInt
    settings: dict[str, Any] = {}


class Init(Settings):
    """Where the initial weights come from: the directory of a Honeybee model, or backbones with a new projector."""

    model: Path | None = None
    vision: str | None = None
    llm: str | None = None
    tokenizer: Path | None = None
    projector: Projector | None = None
    vision_layer: int = -2
    image_size: PositiveInt | None = None
    image_fit: Fit = "stretch"  # model/image_fit.py

    @model_validator(mode="after")
    def _one_origin(self) -> "Init":
        backbones = (self.vision, self.llm, self.tokenizer, self.projector)
        if self.model is None and None in backbones:
            raise ValueError("give either `model`, or all of `vision`, `llm`, `tokenizer` and `projector`")
        others = sorted(name for name in self.model_fields_set - {"model"} if getattr(self, name) is not None)
        if self.model is not None and others:
            raise ValueError(f"`model` already determines the other settings: omit {', '.join(others)}")
        return self

    @property
    def tokenizer_directory(self) -> Path:
        directory = self.model or self.tokenizer
        assert directory is not None  # guaranteed by _one_origin
        return directory


class Job(Settings):
    """All settings of a stage. output: directory of the final model, processor and tokenizer, complete once it has a
    manifest.json. work: directory of checkpoints, metrics.jsonl and tensorboard, which all ranks must see."""

    stage: str
    seed: int = 0
    shards: str  # a directory, or a URL, which needs loading.cache
    image_roots: dict[str, Path] = {}  # by dataset, for shards that hold references instead of images
    init: Init
    train: Train
    benchmarks: dict[str, BenchmarkFiles] = {}  # locations of the benchmarks in train.evaluate
    loading: Loading = Loading()
    output: Path
    work: Path
    device: Literal["auto", "cpu", "cuda"] = "auto"
    peak_tflops: PeakTflops | None = None  # of a rank's device, for MFU; None: looked up in flops.py

    @model_validator(mode="after")
    def _evaluated_benchmarks_have_paths(self) -> "Job":
        unknown = sorted(set(self.train.evaluate.benchmarks if self.train.evaluate else ()) - set(self.benchmarks))
        if unknown:
            raise ValueError(f"train.evaluate names {unknown}, for which `benchmarks` has no path")
        return self

    def identity(self) -> dict[str, Any]:
        """Returns everything that the learned weights depend on, as JSON. Resuming requires an identical identity."""
        free = {
            "attention",
            "micro_batch",
            "zero_stage",
            "offload",
            "gradient_checkpointing",
            "save_every",
            "keep_checkpoints",
            "log_every",
            "wandb",
            "evaluate_every",
            "evaluate",
        }
        # Settings added later count only if used, so that the identities of earlier runs stay the same.
        free |= {key for key in ("lora", "learning_rates") if not getattr(self.train, key)}
        # Reporting a step does not change the weights; skipping it does.
        if self.train.on_spike == "report":
            free |= {"spike_threshold", "on_spike"}
        if self.train.on_nonfinite == "stop":
            free.add("on_nonfinite")
        # The fingerprint of the shards is added by stage.py.
        return {
            "stage": self.stage,
            "seed": self.seed,
            "init": self.init.model_dump(mode="json"),
            "train": self.train.model_dump(mode="json", exclude=free),
        }


def load_job(path: Path) -> Job:
    """Reads a job file. Raises JobError naming the file and, for each invalid key, what is wrong with it."""
    try:
        return Job.model_validate(json.loads(path.read_text()))
    except FileNotFoundError:
        raise JobError(f"there is no job file {path}") from None
    except json.JSONDecodeError as error:
        raise JobError(f"{path} is not valid JSON: {error}") from None
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'job'}: {e['msg']}" for e in error.errors(include_url=False)
        )
        raise JobError(f"{path}: {problems}") from None
