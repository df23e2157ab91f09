"""What a stage of training may choose: the pydantic models that a recipe's `train` and `loading` are made of."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipelines.packing.plan import Packing

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
    """Adapters of the language model (model/training/engine/lora.py). The defaults are those of the paper's official
    code."""

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

    def check_installed(self) -> None:
        """Raises JobError if the package is missing."""
        if importlib.util.find_spec("wandb") is None:
            raise JobError("the package wandb is not installed: `pip install 'honeybee-mllm[wandb]'`, or omit `wandb`")


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


def describe_trained(trains: Sequence[str], lora: Lora | None) -> str:
    """Returns a description: `projector and llm`, or `projector and llm (adapters of rank 8 on q_proj, v_proj)`."""
    text = " and ".join(trains)
    if lora is None:
        return text
    adapters = f"adapters of rank {lora.rank} on {', '.join(lora.targets)}"
    return text.replace("llm", f"llm ({adapters})")
