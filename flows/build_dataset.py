"""Builds what a stage learns from: each dataset's examples, then the balanced shards."""

from dataclasses import dataclass
from pathlib import Path

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from flows.artifacts import publish_data
from flows.workspace import Workspace
from pipelines.build import DatasetSpec, build_embeddings, build_examples, build_images
from pipelines.mix import build_shards


@dataclass(frozen=True)
class StageData:
    """Directories in the store."""

    stage: str
    examples: dict[str, Path]  # by dataset
    shards: Path


@task(task_run_name="{stage} data", cache_policy=NO_CACHE)
def build_stage_data(workspace: Workspace, stage: str, tokenizer: Path) -> StageData:
    """Examples of every dataset of a stage, then its shards; all that is whole in the store is taken from there."""
    log = get_run_logger().info
    recipe, store = workspace.recipe, workspace.store
    specs = workspace.specs(stage)
    images = build_images(store, specs, log=log) if recipe.images == "embed" else {}
    embeddings = build_embeddings(store, specs, recipe.embedder.model, log=log)
    examples = {
        spec.name: build_dataset_examples(workspace, stage, spec, tokenizer, images.get(spec.name), embeddings)
        for spec in specs
    }
    part = workspace.stage(stage)
    shards = build_shards(
        store,
        examples=examples,
        image_roots={spec.name: spec.images for spec in specs},
        weights=part.data.weights,
        num_samples=part.train.steps * part.train.global_batch,
        shard_samples=part.data.shard_samples,
        tokenizer=tokenizer,
        seed=recipe.seed,
        embed_images=recipe.images == "embed",
        log=log,
    )
    log(f"{stage} shards: {shards}")
    publish_data(recipe.name, stage, examples, shards)
    return StageData(stage, examples, shards)


@task(task_run_name="examples of {spec.name}", cache_policy=NO_CACHE)
def build_dataset_examples(
    workspace: Workspace, stage: str, spec: DatasetSpec, tokenizer: Path, images: Path | None, embeddings: Path | None
) -> Path:
    data = workspace.stage(stage).data
    return build_examples(
        workspace.store,
        spec,
        templates=data.templates,
        chat=data.chat,
        tokenizer=tokenizer,
        max_text_tokens=data.max_text_tokens,
        images=images,
        embeddings=embeddings,
        seed=workspace.recipe.seed,
        log=get_run_logger().info,
    )
