"""The data of a recipe: datasets, embedder, and what each stage learns from."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from flows.recipe.part import Part, PositiveInt
from model.training.settings import Train
from pipelines.dedup.settings import Dedup
from pipelines.examples.image_slots import MAX_IMAGES
from pipelines.images.references import Links
from pipelines.mixture.shares import Balance
from pipelines.sources import SourceOptions
from pipelines.sources.options import Columns

Share = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Dataset(Part):
    """Where one dataset is and how its turns become examples."""

    source: str | None = None
    """Reader of the files, by name; if unset, the one with the dataset's own name."""

    annotations: Path | None = None
    """Directory of the official annotation files, relative to `paths.data`."""

    hub: Annotated[str, Field(pattern=r"^[\w.-]+(/[\w.-]+)?$")] | None = None
    """Name of a dataset on the Hugging Face hub, in place of `annotations`; needs `source: datasets`."""

    revision: str | None = None
    """Branch, tag or commit of the hub dataset."""

    columns: Columns | None = None
    """Columns that hold the fields of the task, for `source: datasets`."""

    files: str | None = None
    """Glob pattern of the files below the directory, for the sources `datasets` and `llava`."""

    images: Path | None = None
    """Root directory of the images, relative to `paths.data`; if unset, the annotations directory."""

    image_links: Links | None = None
    """Like the recipe's `image_links`, for this dataset only."""

    max_turns: PositiveInt = 1
    """Maximum number of turns in an example."""

    dedup: Dedup = Dedup()
    """De-duplication of the turns of an example."""

    max_rejects: Fraction | None = None
    """Largest share of the dataset's rows, or turns, that may be rejected; if unset, the recipe's `max_rejects`."""

    @model_validator(mode="after")
    def _one_place(self) -> "Dataset":
        if (self.annotations is None) == (self.hub is None):
            raise ValueError("give either `annotations`, a directory, or `hub`, the name of a dataset there")
        if self.revision is not None and self.hub is None:
            raise ValueError("`revision` selects a version of a hub dataset: give `hub`, or remove it")
        if self.hub is not None and self.columns is None:
            raise ValueError("a dataset on the hub needs `source: datasets` and `columns`")
        if self.hub is not None and self.images is not None:
            raise ValueError("the images of a hub dataset are stored in its own files: remove `images`")
        SourceOptions(files=self.files)  # raises if the pattern leaves the directory
        return self


class Embedder(Part):
    """The model that computes the sentence embeddings of de-duplication."""

    model: str = "all-MiniLM-L6-v2"
    """Directory of a sentence-transformers model, or the name of the default one, which a Python package ships."""

    # Never derived from the machine: on a GPU the vectors differ in their last digits, so the data depend on it.
    device: Literal["cpu", "cuda"] = "cpu"
    """Device that computes the embeddings: the CPU in float32, or a GPU in half precision."""


class Data(Part):
    """What one stage learns from: `weights`, shares that are set by hand, or `datasets`, whose shares the strategy of
    `balance` computes."""

    weights: dict[str, Share] | None = None
    """Share of each dataset, set by hand and normalised."""

    datasets: tuple[str, ...] | None = None
    """Datasets of the stage, in place of `weights`; `balance` computes their shares."""

    balance: Balance
    """Strategy that computes the shares, and limits on them."""

    templates: str = "fine"
    """Template set, a directory under templates/."""

    chat: str = "honeybee"
    """Chat style, a file under templates/chat/."""

    max_text_tokens: PositiveInt = 1024
    """Maximum number of text tokens of an example; longer conversations are split between turns."""

    max_images: PositiveInt = MAX_IMAGES
    """Maximum number of images of an example; each adds M visual tokens."""

    samples: PositiveInt | None = None
    """Number of samples that are written as shards; if unset, `steps` × `global_batch`. Required with packing."""

    shard_mib: Annotated[float, Field(gt=0, le=1024)] = 256
    """Approximate maximum size of a shard in MiB; all shards are about equally large."""

    image_side: PositiveInt | None = None
    """Longer side in pixels to which larger embedded images are reduced; if unset, the original bytes are kept."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the datasets that have a share, sorted."""
        return tuple(sorted(self.weights or self.datasets or ()))

    @model_validator(mode="before")
    @classmethod
    def _strategy(cls, content: Any) -> Any:
        if not isinstance(content, dict) or not isinstance(content.get("balance") or {}, dict):
            return content
        strategy = "per-dataset" if content.get("weights") is None else "tuned"
        return {**content, "balance": {"strategy": strategy, **(content.get("balance") or {})}}

    @model_validator(mode="after")
    def _one_choice(self) -> "Data":
        if bool(self.weights) == bool(self.datasets):
            raise ValueError(
                "give either `weights`, shares set by hand, or `datasets`, whose shares `balance` computes"
            )
        if (self.balance.strategy == "tuned") != (self.weights is not None):
            raise ValueError(
                f"the strategy {self.balance.strategy} computes the shares: give `datasets` in place of `weights`"
                if self.weights
                else "the strategy tuned needs `weights` in place of `datasets`"
            )
        if len(set(self.names)) < len(self.names):
            raise ValueError("datasets: a name appears twice")
        if isinstance(self.balance.max_epochs, dict) and set(self.balance.max_epochs) - set(self.names):
            unknown = sorted(set(self.balance.max_epochs) - set(self.names))
            raise ValueError(f"balance.max_epochs names {unknown}, which have no share")
        return self


class Stage(Part):
    """One of the two training stages."""

    data: Data
    """Training data of the stage."""

    train: Train
    """Schedule, optimiser and layout of the training."""

    @property
    def samples(self) -> int:
        """The number of samples of the mixture that are written as shards."""
        if self.data.samples is not None:
            return self.data.samples
        assert self.train.steps is not None  # by _enough
        return self.train.steps * self.train.global_batch

    @model_validator(mode="after")
    def _enough(self) -> "Stage":
        samples, train = self.data.samples, self.train
        if samples is None and train.packing is not None:
            raise ValueError(
                "with train.packing a step is a number of packs: set data.samples to the number of samples"
            )
        if samples is None and train.steps is None:
            raise ValueError("give train.steps or data.samples")
        fewest = (train.steps or 1) * train.global_batch
        if samples is not None and train.packing is None and samples < fewest:
            raise ValueError(
                f"{train.steps or 1} steps of {train.global_batch} need {fewest} samples: raise data.samples"
            )
        return self
