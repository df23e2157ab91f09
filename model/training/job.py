"""The job of one stage: a JSON file with all its settings, validated before anything is loaded. Needs no torch."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from model.evaluation.base import Place
from model.image_fit import Fit
from pipelines.packing import Packing

PositiveInt = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
PeakTflops = Annotated[float, Field(gt=0)]  # dense, in the training precision
PartName = Literal["vision", "projector", "llm"]


class JobError(ValueError):
    """Raised for a job that cannot run; the message names the file and the key and says what to do."""


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class Lora(Settings):
    """Adapters of the language model (model/training/lora.py). The defaults are those of the paper's official code."""

    rank: PositiveInt = 8
    """Rank of the adapters."""
    alpha: PositiveInt = 32
    """The output of an adapter is scaled by alpha / rank."""
    dropout: Fraction = 0.05
    """Dropout probability on the input of an adapter."""
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    """Names of the linear layers that get an adapter."""

    @model_validator(mode="after")
    def _targets_are_unique(self) -> "Lora":
        if not self.targets or len(set(self.targets)) != len(self.targets):
            raise ValueError("targets: name at least one linear layer, without repetitions")
        return self


class Wandb(Settings):
    """A run of Weights & Biases, in addition to TensorBoard."""

    project: Annotated[str, Field(min_length=1)]
    """Project that the run belongs to."""
    entity: str | None = None
    """User or team that owns the project; by default that of the login."""
    name: str | None = None
    """Display name of the run; by default Weights & Biases chooses one."""


class Evaluate(Settings):
    """Benchmarks that are evaluated during training, by their names in the recipe's `evaluation`."""

    benchmarks: Annotated[tuple[str, ...], Field(min_length=1)]
    """Names of the benchmarks."""
    questions: PositiveInt = 200
    """Number of questions per benchmark, taken from its beginning."""
    batch_size: PositiveInt = 32
    """Questions per batch on each rank."""


class Train(Settings):
    """Training settings of a stage. The defaults are those of the paper's instruction tuning."""

    trains: tuple[PartName, ...] = ("projector", "llm")
    """Parts of the model that are trained; the others are frozen."""
    lora: Lora | None = None
    """Trains only adapters of the language model; None trains all its weights."""
    steps: PositiveInt | None = None
    """Number of optimiser steps; None trains one pass over the samples."""
    packing: Packing | None = None
    """Packs several examples into one sequence; None makes every example its own sequence."""
    attention: Literal["sdpa", "packed"] = "sdpa"
    """`sdpa` masks attention over the whole sequence; `packed` attends within each example, which suits long packs."""
    global_batch: PositiveInt
    """Sequences per optimiser step over all ranks: packs, or examples without packing."""
    micro_batch: PositiveInt
    """Sequences per forward pass of one rank."""
    learning_rate: Rate = 2e-5
    """Peak of the learning rate schedule."""
    learning_rates: dict[PartName, Rate] = {}
    """Peaks for individual parts, by part; each scales the entire schedule."""
    min_learning_rate: Annotated[float, Field(ge=0)] = 1e-6
    """Learning rate at the end of the cosine decay."""
    warmup_steps: Count = 150
    """Steps of linear warm-up."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """AdamW's weight decay, which applies to matrices only, not to norms and biases."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.98)
    """AdamW's coefficients of the running averages."""
    epsilon: Annotated[float, Field(gt=0)] = 1e-6
    """AdamW's epsilon."""
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    """Maximum norm to which the gradient is clipped."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Precision of the forward and backward pass; the optimiser state is always fp32."""
    # Belongs here and not to Loading, because the learned weights depend on it.
    decode: Literal["exact", "fast"] = "exact"
    """`exact` decodes images like the model's processor up to rounding; `fast` decodes large JPEGs less exactly."""
    zero_stage: Literal[0, 2, 3] = 2
    """DeepSpeed ZeRO stage."""
    offload: bool = False
    """Keeps the optimiser state in host memory; needs ZeRO stage 2 or 3."""
    gradient_checkpointing: bool = True
    """Recomputes activations in the backward pass to save memory."""
    save_every: PositiveInt = 500
    """Steps between checkpoints."""
    keep_checkpoints: PositiveInt = 2
    """Number of most recent checkpoints to retain."""
    log_every: PositiveInt = 10
    """Steps between lines of metrics."""
    spike_threshold: Annotated[float, Field(gt=0)] = 8.0
    """A loss is a spike if it exceeds the running median by more than this multiple of its usual change per step."""
    on_spike: Literal["report", "skip"] = "report"
    """What to do at a loss spike: `report` only logs it, `skip` also skips the optimiser's step."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What to do if the loss or gradient is not finite: `stop` ends the run, `skip` skips the optimiser's step."""
    wandb: Wandb | None = None
    """Logs the metrics to Weights & Biases, too."""
    evaluate_every: PositiveInt | None = None
    """Steps between evaluations; None never evaluates during training."""
    evaluate: Evaluate | None = None
    """Benchmarks to evaluate during training."""

    @model_validator(mode="after")
    def _consistent(self) -> "Train":
        if not self.trains or len(set(self.trains)) != len(self.trains):
            raise ValueError("trains: name at least one of vision, projector, llm, without repetitions")
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(f"min_learning_rate {self.min_learning_rate} is above learning_rate {self.learning_rate}")
        if self.lora is not None and "llm" not in self.trains:
            raise ValueError("lora adapts the language model: add llm to `trains`, or omit lora")
        frozen = sorted(set(self.learning_rates) - set(self.trains))
        if frozen:
            raise ValueError(f"learning_rates names {', '.join(frozen)}, not in `trains`: omit or train it")
        if self.steps is not None and self.warmup_steps >= self.steps:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} must be less than the {self.steps} steps: lower warmup_steps"
            )
        if self.offload and self.zero_stage == 0:
            raise ValueError("offload needs zero_stage 2 or 3")
        if (self.evaluate_every is None) != (self.evaluate is None):
            raise ValueError("evaluate_every and evaluate go together: set both, or neither")
        if self.evaluate is not None and self.zero_stage == 3:
            raise ValueError(
                "evaluate needs the full weights on every rank, which zero_stage 3 does not keep: set zero_stage to 2, "
                "or omit evaluate and evaluate_every; the recipe's benchmarks are still evaluated after training"
            )
        return self

    def rate_scale(self, part: PartName) -> float:
        """Returns the factor on the schedule of `learning_rate` for a part: its peak / learning_rate."""
        return self.learning_rates.get(part, self.learning_rate) / self.learning_rate

    def accumulation(self, ranks: int) -> int:
        """Returns the forward passes of a rank per step. Raises ValueError if global_batch is not divisible."""
        if self.global_batch % (self.micro_batch * ranks):
            raise ValueError(
                f"global_batch {self.global_batch} is not a multiple of micro_batch {self.micro_batch} × {ranks} "
                f"ranks = {self.micro_batch * ranks}: change one of the three"
            )
        return self.global_batch // (self.micro_batch * ranks)


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


class Loading(Settings):
    """How samples are read. These settings do not affect the learned weights."""

    decode_threads: PositiveInt = 2
    """Decoding threads per rank."""
    prefetch_steps: PositiveInt = 2
    """Number of steps whose batches are prepared ahead of the model."""
    max_bad_samples: Count = 10
    """Maximum number of samples that cannot be read or whose image does not decode; one more stops the run."""
    cache: Path | None = None
    """Local directory through which shards at a URL are read."""
    cache_gib: Annotated[float, Field(gt=0)] | None = None
    """Maximum size of the cache in GiB; None means no limit."""


class Job(Settings):
    """All settings of a stage. output: directory of the final model, processor and tokenizer, complete once it has a
    manifest.json. work: directory of checkpoints, metrics.jsonl and tensorboard, which all ranks must see."""

    stage: str
    seed: int = 0
    shards: str  # a directory, or a URL, which needs loading.cache
    image_roots: dict[str, Path] = {}  # by dataset, for shards that hold references instead of images
    init: Init
    train: Train
    benchmarks: dict[str, Place] = {}  # locations of the benchmarks in train.evaluate
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


def describe_trained(trains: Sequence[str], lora: Lora | None) -> str:
    """Returns a description: `projector and llm`, or `projector and llm (adapters of rank 8 on q_proj, v_proj)`."""
    text = " and ".join(trains)
    if lora is None:
        return text
    adapters = f"adapters of rank {lora.rank} on {', '.join(lora.targets)}"
    return text.replace("llm", f"llm ({adapters})")


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
