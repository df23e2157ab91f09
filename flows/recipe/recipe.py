"""The recipe: everything that can be chosen for a run, as one YAML file, validated before anything runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from flows.recipe.data import Dataset, Embedder, Fraction, Stage
from flows.recipe.evaluation import Decontamination, Evaluation
from flows.recipe.launch import Launch
from flows.recipe.part import Part, PositiveInt
from model.image_fit import Fit
from model.training.settings import Loading
from pipelines import sources
from pipelines.core.beam import BEAM_OPTIONS
from pipelines.core.yaml_files import UniqueKeys, validation_problems
from pipelines.images.references import Links
from pipelines.sources import Source, SourceOptions

RECIPES = Path(__file__).parents[1] / "recipes"


class RecipeError(ValueError):
    """A recipe that cannot run; the message names the file, the key and what to do."""


class Paths(Part):
    """Where a run reads and writes. Relative paths start at the directory in which the command runs."""

    store: Path = Path("store")
    """Content-addressed store, which holds the output of every step."""

    runs: Path = Path("runs")
    """Directory in which each run leaves its report, scores and links into the store."""

    data: Path = Path("data")
    """Root of the official files; the paths of datasets and benchmarks are relative to it."""

    remote: str | None = None
    """URL such as `s3://bucket/prefix`: finished shards are copied to `<remote>/shards/`, and training reads them from
    there if `loading.cache` is set."""


class SampleCorpus(Part):
    """Generates the sample corpus (pipelines/sample) in the store first and uses it in place of `paths.data`."""

    scenes: PositiveInt = 20000
    """Number of images to train on."""

    held_out: PositiveInt = 400
    """Number of images that only the benchmarks show."""

    seed: int = 0
    """Seed of the generated scenes."""


class SampleBackbones(Part):
    """Trains a small CLIP and a small Llama on the sample corpus first (model/training/sample_backbones.py)."""

    image_size: PositiveInt = 32
    """Side of the vision model's input in pixels."""

    vision_steps: PositiveInt = 1200
    """Training steps of the vision model."""

    llm_steps: PositiveInt = 100
    """Training steps of the language model."""

    seed: int = 0
    """Seed of both models' weights and batches."""


class Backbones(Part):
    """Either `train`, or the names or directories of a CLIP-like vision model and a causal language model."""

    vision: str | None = None
    """Hub name or directory of the vision model."""

    llm: str | None = None
    """Hub name or directory of the causal language model."""

    train: SampleBackbones | None = None
    """Trains small backbones on the sample corpus, in place of `vision` and `llm`."""

    @model_validator(mode="after")
    def _one_origin(self) -> "Backbones":
        if (self.train is None) == (self.vision is None or self.llm is None):
            raise ValueError("give either `train`, or both `vision` and `llm`")
        return self


class Projector(Part):
    """The network between vision model and language model (paper, section 3.2)."""

    type: str = "c-abstractor"
    """Projector by name: linear, mlp, resampler, c-abstractor or d-abstractor."""

    num_tokens: PositiveInt = 144
    """M, the number of visual tokens of an image."""

    settings: dict[str, Any] = {}
    """Settings of the projector type; a key that the type does not have is an error."""


class Model(Part):
    """How the parts are put together."""

    projector: Projector = Projector()
    """Network that turns visual features into visual tokens."""

    image_size: PositiveInt | None = None
    """S, the side of the square input image in pixels; if unset, the vision model's own."""

    image_fit: Fit = "stretch"
    """How an image becomes a square: `stretch` resizes it, `crop` cuts out the middle, `pad` adds bars."""

    vision_layer: int = -2
    """Index into the vision model's hidden states; the paper reads the second-to-last layer."""


class Recipe(Part):
    """A complete run: data, both training stages and evaluation."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$", max_length=100)]
    """Name of the recipe: letters, digits and `._+-`. Its runs are stored under `<paths.runs>/<name>/`."""

    seed: int = 0
    """Seed of the data and of the training."""

    paths: Paths = Paths()
    """Directories that a run reads and writes."""

    sample: SampleCorpus | None = None
    """Generates the sample corpus and uses it in place of `paths.data`."""

    backbones: Backbones
    """Vision model and language model to start from."""

    model: Model = Model()
    """Projector and image input."""

    datasets: dict[str, Dataset]
    """Datasets by name; the name selects the templates and, unless `source` is set, the reader."""

    images: Literal["embed", "reference", "skip"] = "embed"
    """What shards hold of an image: its bytes, its path and checksum, or only its path (no image is opened)."""

    max_rejects: Fraction = 0.5
    """Largest share of a dataset's rows, or turns, that may be rejected: a build with more fails before anything is
    trained. Duplicates, rows of other splits and rows that `decontamination` drops do not count. 1 allows all."""

    image_links: Links = "follow"
    """Whether symbolic links below the images and annotations of a dataset may lead outside their directory."""

    embedder: Embedder = Embedder()
    """Sentence embeddings of de-duplication."""

    pretrain: Stage
    """First stage, which usually trains only the projector."""

    finetune: Stage
    """Second stage, which usually trains the projector and the language model."""

    launch: Launch = Launch()
    """Processes, devices and hosts."""

    loading: Loading = Loading()
    """How samples are read during training; nothing here changes what is learned."""

    beam: tuple[str, ...] = BEAM_OPTIONS
    """Options of Apache Beam, which decide where its jobs run; the outputs do not depend on them."""

    evaluation: Evaluation = Evaluation()
    """Benchmarks and how they are asked."""

    decontamination: Decontamination | None = None
    """Comparison of the training data with benchmarks; none if unset."""

    def stage(self, name: str) -> Stage:
        return {"pretrain": self.pretrain, "finetune": self.finetune}[name]

    def max_rejects_of(self, dataset: str) -> float:
        """Returns the largest share of a dataset's rows that may be rejected."""
        own = self.datasets[dataset].max_rejects
        return self.max_rejects if own is None else own

    def with_benchmarks(self, names: Sequence[str] | None) -> "Recipe":
        """Returns the recipe with only the named benchmarks, or with all if none is named. Raises RecipeError if it
        lacks one of them or has no benchmark."""
        own = self.evaluation.benchmarks
        if not own:
            raise RecipeError(f"{self.name}: evaluation.benchmarks lists no benchmark")
        if unknown := [name for name in names or () if name not in own]:
            raise RecipeError(
                f"{self.name} has no benchmark {', '.join(unknown)}; evaluation.benchmarks has {', '.join(own)}"
            )
        chosen = {name: own[name] for name in names or own}
        evaluation = self.evaluation.model_copy(update={"benchmarks": chosen})
        return self.model_copy(update={"evaluation": evaluation})

    def source(self, dataset: str) -> Source:
        """Returns the reader of a dataset's files. Raises SourceError for an unknown name, or options that it lacks."""
        part = self.datasets[dataset]
        return sources.get(part.source or dataset, SourceOptions(columns=part.columns, files=part.files))

    def compares_vectors(self, dataset: str) -> bool:
        """Returns whether de-duplication of a dataset looks up embeddings. Raises SourceError like `source`."""
        part = self.datasets[dataset]
        return part.dedup.compares_vectors(self.source(dataset).task, part.max_turns)

    @model_validator(mode="after")
    def _names_agree(self) -> "Recipe":
        for stage in ("pretrain", "finetune"):
            data = self.stage(stage).data
            unknown = sorted(set(data.names) - set(self.datasets))
            if unknown:
                key = "weights" if data.weights else "datasets"
                raise ValueError(f"{stage}.data.{key} names {unknown}, which `datasets` does not describe")
        return self

    @model_validator(mode="after")
    def _examples_fit_their_packs(self) -> "Recipe":
        for name in ("pretrain", "finetune"):
            stage = self.stage(name)
            visual = self.model.projector.num_tokens
            longest = stage.data.max_text_tokens + (self.images != "skip") * (visual - 1)
            if stage.train.packing is not None and stage.train.packing.max_tokens < longest:
                raise ValueError(
                    f"{name}.train.packing.max_tokens {stage.train.packing.max_tokens} is too small for an example of "
                    f"data.max_text_tokens {stage.data.max_text_tokens} with an image of {visual} visual "
                    f"tokens: raise it to {longest}, or lower one of the others"
                )
        return self

    @model_validator(mode="after")
    def _evaluates_what_it_knows(self) -> "Recipe":
        for name in ("pretrain", "finetune"):
            evaluate = self.stage(name).train.evaluate
            unknown = sorted(set(evaluate.benchmarks if evaluate else ()) - set(self.evaluation.benchmarks))
            if unknown:
                raise ValueError(
                    f"{name}.train.evaluate names {unknown}, which `evaluation.benchmarks` does not describe"
                )
        return self

    @model_validator(mode="after")
    def _reads_what_is_there(self) -> "Recipe":
        if self.loading.cache is not None and self.paths.remote is None:
            raise ValueError("loading.cache applies to shards at a URL: set paths.remote, or remove it")
        return self

    @model_validator(mode="after")
    def _shrinks_what_it_embeds(self) -> "Recipe":
        for stage in ("pretrain", "finetune"):
            if self.stage(stage).data.image_side is not None and self.images != "embed":
                raise ValueError(f"{stage}.data.image_side shrinks embedded images, but images: {self.images}")
        return self

    @model_validator(mode="after")
    def _decontamination_agrees(self) -> "Recipe":
        part = self.decontamination
        if part is None:
            return self
        if part.images != "skip" and self.images == "skip":
            raise ValueError(
                "decontamination.images compares images, but `images: skip` opens none: set it to skip as well"
            )
        if part.evaluation and not self.evaluation.benchmarks:
            raise ValueError("decontamination.evaluation: `evaluation` lists no benchmark")
        twice = sorted(set(part.benchmarks) & set(self.evaluation.benchmarks)) if part.evaluation else []
        if twice:
            raise ValueError(f"decontamination.benchmarks names {twice}, which `evaluation: true` already adds")
        return self


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Reads a recipe file, or a recipe of flows/recipes by its name. Raises RecipeError naming file, key and remedy."""
    path = Path(name_or_path)
    if not path.suffix:
        path = RECIPES / f"{name_or_path}.yaml"
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=UniqueKeys)
    except FileNotFoundError:
        known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.yaml")))
        raise RecipeError(f"no recipe {name_or_path}: give a YAML file or one of: {known}") from None
    except (yaml.YAMLError, ValueError, RecursionError, TypeError, IndexError, AttributeError) as error:
        # Also: not UTF-8, too many digits, too deep nesting, a key that is not a string, an empty !!int.
        raise RecipeError(f"{path} is not valid YAML: {error}") from None
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise RecipeError(f"{path}: {validation_problems(error, 'recipe')}") from None
