"""Builds the data of a stage, without Prefect: the examples of each dataset, then the balanced shards."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from flows.data.decontamination import decontamination
from flows.data.rejects import check_rejects
from flows.runs.workspace import Log, Workspace
from pipelines.decontamination.match import Decontamination
from pipelines.examples.settings import ExampleSettings
from pipelines.images.shrink import Shrink
from pipelines.jobs.dataset import DatasetSpec, Tables
from pipelines.jobs.embeddings import build_embeddings
from pipelines.jobs.examples import build_examples
from pipelines.jobs.images import build_images
from pipelines.jobs.shards import build_shards
from pipelines.packing.plan import Lengths, PackingError, make_plan
from pipelines.shards.plan import ImageMode
from pipelines.shards.remote import push, shards_url
from pipelines.shards.settings import ShardSettings
from pipelines.templates.sets import load_templates
from pipelines.tokens.chat_style import load_chat_template


@dataclass(frozen=True)
class StageData:
    """The data of a stage, as directories in the store."""

    stage: str
    examples: dict[str, Path]  # by dataset
    shards: Path


def stage_data(
    workspace: Workspace, stage: str, tokenizer: Path, examples_of: Callable[..., Path], log: Log
) -> StageData:
    """Builds the examples of every dataset of a stage, then its shards, reusing what is complete in the store.
    examples_of: dataset_examples, or a Prefect task that wraps it. Raises TooManyRejects, or PackingError if the packs
    are too few."""
    examples = stage_examples(workspace, stage, tokenizer, examples_of, log)
    return StageData(stage, examples, balanced_shards(workspace, stage, tokenizer, examples, log))


def stage_examples(
    workspace: Workspace, stage: str, tokenizer: Path, examples_of: Callable[..., Path], log: Log
) -> dict[str, Path]:
    """Builds the examples of every dataset of a stage; returns dataset → directory. examples_of: as for stage_data.
    Raises TooManyRejects, naming every dataset of which more rows were rejected than the recipe allows."""
    recipe, store = workspace.recipe, workspace.store
    specs = workspace.specs(stage)
    benchmarks = decontamination(workspace, log)
    images = build_images(store, specs, log=log) if recipe.images != "skip" else {}
    embeddings = build_embeddings(store, specs, recipe.embedder.model, recipe.embedder.device, log=log)
    examples = {
        spec.name: examples_of(
            workspace,
            spec,
            example_settings(workspace, stage, spec, tokenizer, benchmarks),
            Tables(images.get(spec.name), embeddings),
        )
        for spec in specs
    }
    check_rejects(examples, {name: recipe.max_rejects_of(name) for name in examples})
    return examples


def balanced_shards(workspace: Workspace, stage: str, tokenizer: Path, examples: Mapping[str, Path], log: Log) -> Path:
    """Builds the shards of a stage from its examples and returns their directory. Raises PackingError if the packs are
    too few."""
    recipe, store = workspace.recipe, workspace.store
    part = workspace.stage(stage)
    side = part.data.image_side
    settings = ShardSettings(
        balance=part.data.balance,
        weights=part.data.weights,
        num_samples=part.samples,
        shard_bytes=max(1, round(part.data.shard_mib * 2**20)),
        tokenizer=tokenizer,
        image_mode=ImageMode(recipe.images, Shrink(side) if side else None),
        seed=recipe.seed,
    )
    image_roots = {spec.name: spec.images for spec in workspace.specs(stage)}
    shards = build_shards(store, examples, image_roots, settings, recipe.beam, log)
    log(f"{stage} shards: {shards}")
    if part.train.packing is not None:  # report packing problems before anything is trained
        lengths = Lengths(shards / "lengths.parquet")
        plan = make_plan(lengths, part.train.packing, recipe.model.projector.num_tokens)
        steps = plan.num_packs // part.train.global_batch
        log(f"{stage}: {plan.num_packs:,} packs, {plan.used:.1%} full, enough for {steps:,} steps")
        if steps < (part.train.steps or 1):
            raise PackingError(
                f"{stage}: {part.samples:,} samples fill {plan.num_packs:,} packs, enough for only {steps:,} steps of "
                f"{part.train.global_batch} packs: raise data.samples, or lower train.steps or train.global_batch"
            )
    if recipe.paths.remote is not None:
        push(shards, shards_url(recipe.paths.remote, shards), log)
    return shards


def example_settings(
    workspace: Workspace, stage: str, spec: DatasetSpec, tokenizer: Path, benchmarks: Decontamination | None
) -> ExampleSettings:
    """Returns how a stage turns the annotations of a dataset into examples; its templates are read here, once. Raises
    TemplateError or ChatStyleError for those that cannot be used."""
    data = workspace.stage(stage).data
    return ExampleSettings(
        dataset=spec.name,
        task=spec.task,
        templates=load_templates(data.templates, spec.name, spec.task),
        chat=load_chat_template(data.chat),
        tokenizer=tokenizer,
        max_text_tokens=data.max_text_tokens,
        max_turns=spec.max_turns,
        max_images=data.max_images,
        seed=workspace.recipe.seed,
        dedup=spec.dedup,
        decontamination=benchmarks,
    )


def dataset_examples(
    workspace: Workspace, spec: DatasetSpec, settings: ExampleSettings, tables: Tables, log: Log
) -> Path:
    return build_examples(workspace.store, spec, settings, tables, workspace.recipe.beam, log)
