"""The job of one stage: a JSON file that says all of it, checked before anything is loaded. Needs no torch."""

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
PeakTflops = Annotated[float, Field(gt=0)]  # dense, in the precision of the training
PartName = Literal["vision", "projector", "llm"]


class JobError(ValueError):
    """A job that cannot run; the message names the file, the key and what to do."""


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Lora(Settings):
    """Adapters of the language model (model/training/lora.py). Defaults are those of the paper's authors."""

    rank: PositiveInt = 8
    alpha: PositiveInt = 32  # what they add is scaled by alpha ÷ rank
    dropout: Fraction = 0.05
    targets: tuple[str, ...] = ("q_proj", "v_proj")  # names of linear layers

    @model_validator(mode="after")
    def _names_targets(self) -> "Lora":
        if not self.targets or len(set(self.targets)) != len(self.targets):
            raise ValueError("targets: name at least one linear layer, each once")
        return self


class Wandb(Settings):
    """A run of Weights & Biases, beside TensorBoard."""

    project: Annotated[str, Field(min_length=1)]
    entity: str | None = None
    name: str | None = None


class Evaluate(Settings):
    """Benchmarks that are asked while a stage trains, by their names in the recipe's `evaluation`."""

    benchmarks: Annotated[tuple[str, ...], Field(min_length=1)]
    questions: PositiveInt = 200  # the first of each benchmark
    batch_size: PositiveInt = 32  # of a rank


class Train(Settings):
    """How a stage learns. Defaults are those of the paper's instruction tuning."""

    trains: tuple[PartName, ...] = ("projector", "llm")
    lora: Lora | None = None  # of the language model only adapters train; None: the whole
    steps: PositiveInt | None = None  # None: as many as the samples give
    packing: Packing | None = None  # None: every example is a sequence of its own
    # `packed` computes each example of a sequence by itself, where `sdpa` masks a product of all positions with all; it
    # suits long packs (model/training/attention.py).
    attention: Literal["sdpa", "packed"] = "sdpa"
    global_batch: PositiveInt  # sequences in an optimiser step, over all ranks: packs, or examples without packing
    micro_batch: PositiveInt  # sequences in a forward pass of one rank
    learning_rate: Rate = 2e-5  # the peak of the schedule
    learning_rates: dict[PartName, Rate] = {}  # the peaks of single parts, whose schedules are scaled as a whole
    min_learning_rate: Annotated[float, Field(ge=0)] = 1e-6
    warmup_steps: Count = 150
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    betas: tuple[Fraction, Fraction] = (0.9, 0.98)
    epsilon: Annotated[float, Field(gt=0)] = 1e-6
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    precision: Literal["fp32", "bf16"] = "bf16"
    # How pictures become pixels (model/training/decode.py). It belongs here and not to Loading, for what is learned
    # depends on it: `exact` as the model's processor does it but for rounding, `fast` large JPEGs less exactly.
    decode: Literal["exact", "fast"] = "exact"
    zero_stage: Literal[0, 2, 3] = 2
    offload: bool = False
    gradient_checkpointing: bool = True
    save_every: PositiveInt = 500  # steps between checkpoints
    keep_checkpoints: PositiveInt = 2
    log_every: PositiveInt = 10
    # A spike: a loss above the running median by so many times its usual change from step to step (spikes.py).
    spike_threshold: Annotated[float, Field(gt=0)] = 8.0
    on_spike: Literal["report", "skip"] = "report"  # skip: without the optimiser's step
    on_nonfinite: Literal["stop", "skip"] = "stop"  # a loss or gradient that is no number
    wandb: Wandb | None = None
    evaluate_every: PositiveInt | None = None  # steps; None: never
    evaluate: Evaluate | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "Train":
        if not self.trains or len(set(self.trains)) != len(self.trains):
            raise ValueError("trains: name at least one of vision, projector, llm, each once")
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(f"min_learning_rate {self.min_learning_rate} is above learning_rate {self.learning_rate}")
        if self.lora is not None and "llm" not in self.trains:
            raise ValueError("lora adapts the language model: add llm to `trains`, or leave lora out")
        asleep = sorted(set(self.learning_rates) - set(self.trains))
        if asleep:
            raise ValueError(f"learning_rates names {', '.join(asleep)}, not in `trains`: leave it out, or train it")
        if self.steps is not None and self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} leave nothing of {self.steps} steps: lower them")
        if self.offload and self.zero_stage == 0:
            raise ValueError("offload needs zero_stage 2 or 3")
        if (self.evaluate_every is None) != (self.evaluate is None):
            raise ValueError("evaluate_every and evaluate go together: how often, and which benchmarks")
        if self.evaluate is not None and self.zero_stage == 3:
            raise ValueError(
                "evaluate needs whole weights on every rank, which zero_stage 3 does not keep: take 2, or leave out "
                "evaluate and evaluate_every; the recipe's benchmarks are asked after training all the same"
            )
        return self

    def rate_scale(self, part: PartName) -> float:
        """What the schedule of `learning_rate` is multiplied by for a part: its peak ÷ learning_rate."""
        return self.learning_rates.get(part, self.learning_rate) / self.learning_rate

    def accumulation(self, ranks: int) -> int:
        """Forward passes of a rank in one step. Raises ValueError when global_batch does not divide."""
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
    """Where the weights come from: the directory of a Honeybee model, or backbones with a new projector."""

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
            raise ValueError(f"`model` says all of it: leave out {', '.join(others)}")
        return self

    @property
    def tokenizer_directory(self) -> Path:
        directory = self.model or self.tokenizer
        assert directory is not None  # by _one_origin
        return directory


class Loading(Settings):
    """How samples are read. Nothing of it changes what is learned."""

    decode_threads: PositiveInt = 2  # of one rank
    prefetch_steps: PositiveInt = 2  # steps made ready ahead of the model
    max_bad_samples: Count = 10  # samples that cannot be read, or whose image does not decode; one more stops the run
    cache: Path | None = None  # a local directory, through which shards at a URL are read
    cache_gib: Annotated[float, Field(gt=0)] | None = None  # the most that it takes; None: no limit


class Job(Settings):
    """output: the final model, processor and tokenizer, whole when its manifest.json is there.
    work: checkpoints, metrics.jsonl and tensorboard, on a disk that all ranks see."""

    stage: str
    seed: int = 0
    shards: str  # a directory, or the URL of one, which needs loading.cache
    image_roots: dict[str, Path] = {}  # of each dataset, for shards that hold references instead of images
    init: Init
    train: Train
    benchmarks: dict[str, Place] = {}  # those that train.evaluate asks
    loading: Loading = Loading()
    output: Path
    work: Path
    device: Literal["auto", "cpu", "cuda"] = "auto"
    peak_tflops: PeakTflops | None = None  # of a rank's device, for MFU; None: of the GPUs that flops.py knows

    @model_validator(mode="after")
    def _knows_its_benchmarks(self) -> "Job":
        unknown = sorted(set(self.train.evaluate.benchmarks if self.train.evaluate else ()) - set(self.benchmarks))
        if unknown:
            raise ValueError(f"train.evaluate names {unknown}, which `benchmarks` does not place")
        return self

    def identity(self) -> dict[str, Any]:
        """All that the learned weights depend on, as JSON. A checkpoint is resumed only by a job with the same."""
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
        # Settings that came later count only where they are used: what was trained before them keeps its identity.
        free |= {key for key in ("lora", "learning_rates") if not getattr(self.train, key)}
        # What reports changes nothing; what leaves steps out does.
        if self.train.on_spike == "report":
            free |= {"spike_threshold", "on_spike"}
        if self.train.on_nonfinite == "stop":
            free.add("on_nonfinite")
        # The seed, the stage's name and the origin of the weights; the shards add what they are made of.
        return {
            "stage": self.stage,
            "seed": self.seed,
            "init": self.init.model_dump(mode="json"),
            "train": self.train.model_dump(mode="json", exclude=free),
        }


def describe_trained(trains: Sequence[str], lora: Lora | None) -> str:
    """For people: `projector and llm`, or `projector and llm (adapters of rank 8 on q_proj, v_proj)`."""
    text = " and ".join(trains)
    if lora is None:
        return text
    adapters = f"adapters of rank {lora.rank} on {', '.join(lora.targets)}"
    return text.replace("llm", f"llm ({adapters})")


def load_job(path: Path) -> Job:
    """Reads a job file. Raises JobError naming the file, each wrong key and what is wrong with it."""
    try:
        return Job.model_validate(json.loads(path.read_text()))
    except FileNotFoundError:
        raise JobError(f"no job file {path}") from None
    except json.JSONDecodeError as error:
        raise JobError(f"{path} is not valid JSON: {error}") from None
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'job'}: {e['msg']}" for e in error.errors(include_url=False)
        )
        raise JobError(f"{path}: {problems}") from None
