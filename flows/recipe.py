"""The recipe: everything a run can choose, as one YAML file, validated before anything runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from flows.recipe_evaluation import Decontamination, Evaluation
from flows.recipe_launch import Launch
from flows.recipe_part import Part, PositiveInt
from model.image_fit import Fit
from model.training.job import Loading, Train
from pipelines import sources
from pipelines.balance import Balance
from pipelines.beam import BEAM_OPTIONS
from pipelines.pictures import MAX_IMAGES
from pipelines.sources import Source, SourceOptions
from pipelines.sources.options import Columns

RECIPES = Path(__file__).parent / "recipes"
Share = Annotated[float, Field(gt=0)]


class RecipeError(ValueError):
    """A recipe that cannot run; the message names the file, the key and what to do."""


class Paths(Part):
    """Relative paths are taken from the directory where the command runs."""

    store: Path = Path("store")
    runs: Path = Path("runs")
    data: Path = Path("data")  # annotations and images are given relative to it
    remote: str | None = (
        None  # s3://bucket/prefix and the like: built shards are copied to <remote>/shards/; with loading.cache,
    )
    # training reads them from there


class SampleCorpus(Part):
    """Generate the sample corpus in the store first (pipelines/sample), and use it in place of `paths.data`."""

    scenes: PositiveInt = 20000
    held_out: PositiveInt = 400
    seed: int = 0


class SampleBackbones(Part):
    """Train a small CLIP and a small Llama on the sample corpus first (model/backbones.py)."""

    image_size: PositiveInt = 32
    vision_steps: PositiveInt = 1200
    llm_steps: PositiveInt = 100
    seed: int = 0


class Backbones(Part):
    """Either `train`, or hub names or directories of a CLIP-like vision model and a causal language model."""

    vision: str | None = None
    llm: str | None = None
    train: SampleBackbones | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> "Backbones":
        if (self.train is None) == (self.vision is None or self.llm is None):
            raise ValueError("give either `train`, or both `vision` and `llm`")
        return self


class Projector(Part):
    """Paper section 3.2; settings that a type does not know are errors in model/projectors."""

    type: str = "c-abstractor"
    num_tokens: PositiveInt = 144  # M, the visual tokens of an image
    settings: dict[str, Any] = {}


class Model(Part):
    projector: Projector = Projector()
    image_size: PositiveInt | None = None  # S; the vision model's own where absent
    image_fit: Fit = "stretch"  # how a picture becomes S × S: see model/image_fit.py
    vision_layer: int = -2  # index into hidden_states: the paper reads the second to last


class Dedup(Part):
    """Semantic de-duplication inside one multi-turn example (paper section 4, Table 5d)."""

    rule: Literal["semantic", "answer", "semantic+answer", "off"] = "semantic"
    compare: Literal["pair", "question", "answer"] = "pair"
    threshold: Annotated[float, Field(gt=0, le=1)] | None = None  # None: the default chosen in pipelines/dedup.py


class Dataset(Part):
    source: str | None = None  # a name in pipelines/sources; the dataset's own name where absent
    annotations: Path | None = None  # the directory of the official files, relative to paths.data
    hub: Annotated[str, Field(pattern=r"^[\w.-]+(/[\w.-]+)?$")] | None = None  # in its place, for `source: datasets`
    revision: str | None = None  # of the hub's dataset: a branch, tag or commit
    columns: Columns | None = None  # of `source: datasets`
    files: str | None = None  # of the sources `datasets` and `llava`: a pattern below the directory
    images: Path | None = None  # the root of its images; the annotations directory where absent
    max_turns: PositiveInt = 1
    dedup: Dedup = Dedup()

    @model_validator(mode="after")
    def _one_place(self) -> "Dataset":
        if (self.annotations is None) == (self.hub is None):
            raise ValueError("give either `annotations`, a directory, or `hub`, the name of a dataset there")
        if self.revision is not None and self.hub is None:
            raise ValueError("`revision` is that of a dataset on the hub: give `hub`, or leave it out")
        if self.hub is not None and self.columns is None:
            raise ValueError("a dataset on the hub needs `source: datasets` and `columns`")
        if self.hub is not None and self.images is not None:
            raise ValueError("the pictures of a dataset on the hub lie in its files: leave out `images`")
        SourceOptions(files=self.files)  # raises where the pattern leaves the directory
        return self


class Embedder(Part):
    """Where de-duplication's sentence embeddings come from; the default model travels in a package."""

    model: str = "all-MiniLM-L6-v2"
    # On a GPU vectors are made in half precision and differ in the last digits: part of what the data depend on, so it
    # never follows from what a machine has.
    device: Literal["cpu", "cuda"] = "cpu"


class Data(Part):
    """What one stage learns from: `weights`, shares by hand (dataset → share, normalised), or `datasets`, whose shares
    a strategy of `balance` finds."""

    weights: dict[str, Share] | None = None
    datasets: tuple[str, ...] | None = None
    balance: Balance  # its strategy, where absent: tuned with weights, else per-dataset
    templates: str = "fine"  # a set under templates/
    chat: str = "honeybee"  # a style under templates/chat/
    max_text_tokens: PositiveInt = 1024
    max_images: PositiveInt = MAX_IMAGES  # of an example; each takes M tokens more
    samples: PositiveInt | None = None  # of the mixture; None: steps × global_batch, without packing
    shard_mib: Annotated[float, Field(gt=0, le=1024)] = 256  # about the most that a shard takes; all are even
    image_side: PositiveInt | None = None  # embedded pictures are shrunk to this longer side; None: kept as they are

    @property
    def names(self) -> tuple[str, ...]:
        """The datasets that have a share, sorted."""
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
                "give either `weights`, shares by hand, or `datasets`, shared by the strategy of `balance`"
            )
        if (self.balance.strategy == "tuned") != (self.weights is not None):
            raise ValueError(
                f"the strategy {self.balance.strategy} finds the shares itself: give `datasets` in place of `weights`"
                if self.weights
                else "the strategy tuned needs `weights` in place of `datasets`"
            )
        if len(set(self.names)) < len(self.names):
            raise ValueError("datasets: each name once")
        if isinstance(self.balance.max_epochs, dict) and set(self.balance.max_epochs) - set(self.names):
            unknown = sorted(set(self.balance.max_epochs) - set(self.names))
            raise ValueError(f"balance.max_epochs names {unknown}, which have no share")
        return self


class Stage(Part):
    data: Data
    train: Train

    @property
    def samples(self) -> int:
        """How many samples of the mixture are written as shards."""
        if self.data.samples is not None:
            return self.data.samples
        assert self.train.steps is not None  # by _enough
        return self.train.steps * self.train.global_batch

    @model_validator(mode="after")
    def _enough(self) -> "Stage":
        samples, train = self.data.samples, self.train
        if samples is None and train.packing is not None:
            raise ValueError("with train.packing a step is a number of packs: say in data.samples how many samples")
        if samples is None and train.steps is None:
            raise ValueError("give train.steps or data.samples")
        fewest = (train.steps or 1) * train.global_batch
        if samples is not None and train.packing is None and samples < fewest:
            raise ValueError(
                f"{train.steps or 1} steps of {train.global_batch} need {fewest} samples: raise data.samples"
            )
        return self


class Recipe(Part):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$", max_length=100)]
    seed: int = 0
    paths: Paths = Paths()
    sample: SampleCorpus | None = None
    backbones: Backbones
    model: Model = Model()
    datasets: dict[str, Dataset]
    images: Literal["embed", "reference", "skip"] = "embed"  # in shards: bytes, paths with sums, or paths alone
    embedder: Embedder = Embedder()
    pretrain: Stage
    finetune: Stage
    launch: Launch = Launch()
    loading: Loading = Loading()
    beam: tuple[str, ...] = BEAM_OPTIONS  # Beam's own options: where its jobs run; no byte depends on them
    evaluation: Evaluation = Evaluation()
    decontamination: Decontamination | None = None  # absent: nothing is looked for

    def stage(self, name: str) -> Stage:
        return {"pretrain": self.pretrain, "finetune": self.finetune}[name]

    def with_benchmarks(self, names: Sequence[str] | None) -> "Recipe":
        """Only these of its benchmarks, all where none is named. Raises RecipeError for one that it lacks, and where it
        has none."""
        own = self.evaluation.benchmarks
        if not own:
            raise RecipeError(f"{self.name}: evaluation.benchmarks names none to ask")
        if unknown := [name for name in names or () if name not in own]:
            raise RecipeError(
                f"{self.name} has no benchmark {', '.join(unknown)}; evaluation.benchmarks has {', '.join(own)}"
            )
        chosen = {name: own[name] for name in names or own}
        evaluation = self.evaluation.model_copy(update={"benchmarks": chosen})
        return self.model_copy(update={"evaluation": evaluation})

    def source(self, dataset: str) -> Source:
        """What reads a dataset's files. Raises SourceError for a name or options that it does not know."""
        part = self.datasets[dataset]
        return sources.get(part.source or dataset, SourceOptions(columns=part.columns, files=part.files))

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
                    f"{name}.train.packing.max_tokens {stage.train.packing.max_tokens} has no room for an example of "
                    f"data.max_text_tokens {stage.data.max_text_tokens} with an image of {visual} visual "
                    f"tokens: raise it to {longest}, or lower one of these"
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
            raise ValueError("loading.cache is for shards at a URL: give paths.remote, or leave it out")
        return self

    @model_validator(mode="after")
    def _shrinks_what_it_embeds(self) -> "Recipe":
        for stage in ("pretrain", "finetune"):
            if self.stage(stage).data.image_side is not None and self.images != "embed":
                raise ValueError(f"{stage}.data.image_side shrinks embedded pictures, but images: {self.images}")
        return self

    @model_validator(mode="after")
    def _decontamination_agrees(self) -> "Recipe":
        part = self.decontamination
        if part is None:
            return self
        if part.images != "skip" and self.images == "skip":
            raise ValueError(
                "decontamination.images compares pictures, but `images: skip` opens none: skip it there too"
            )
        if part.evaluation and not self.evaluation.benchmarks:
            raise ValueError("decontamination.evaluation: `evaluation` names no benchmark")
        twice = sorted(set(part.benchmarks) & set(self.evaluation.benchmarks)) if part.evaluation else []
        if twice:
            raise ValueError(f"decontamination.benchmarks names {twice}, which `evaluation: true` brings already")
        return self


class _UniqueKeys(yaml.SafeLoader):
    """YAML without the last of two equal keys winning in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    "in a mapping", node.start_mark, f"the key {key.value!r} stands twice", key.start_mark
                )
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Reads a recipe file, or one of flows/recipes by its name. Raises RecipeError naming file, key and remedy."""
    path = Path(name_or_path)
    if not path.suffix:
        path = RECIPES / f"{name_or_path}.yaml"
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except FileNotFoundError:
        known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.yaml")))
        raise RecipeError(f"no recipe {name_or_path}: give a YAML file or one of: {known}") from None
    except (yaml.YAMLError, ValueError, RecursionError, TypeError, IndexError, AttributeError) as error:
        # Also: not UTF-8, an endless number, endless nesting, a key that is no text, an empty !!int.
        raise RecipeError(f"{path} is not valid YAML: {error}") from None
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'recipe'}: {e['msg'].removeprefix('Value error, ')}"
            for e in error.errors(include_url=False)
        )
        raise RecipeError(f"{path}: {problems}") from None
