"""Builds the data of a stage as Prefect tasks: its examples, with a subtask for each dataset, and
its shards."""

from pathlib import Path

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from flows.data.stage_data import StageData, balanced_shards, dataset_examples, stage_examples
from flows.report.artifacts import publish_data
from flows.runs.workspace import Workspace
from pipelines.examples.settings import ExampleSettings
from pipelines.jobs.dataset import DatasetSpec, Tables


@task(task_run_name="{stage} examples", cache_policy=NO_CACHE)
def build_stage_examples(workspace: Workspace, stage: str, tokenizer: Path) -> dict[str, Path]:
    """Runs `stage_examples` with a subtask for each dataset."""
    return stage_examples(workspace, stage, tokenizer, build_dataset_examples, get_run_logger().info)


@task(task_run_name="{stage} data", cache_policy=NO_CACHE)
def build_stage_data(workspace: Workspace, stage: str, tokenizer: Path, examples: dict[str, Path]) -> StageData:
    """Builds the shards of a stage from its examples, and publishes the result as artifacts."""
    shards = balanced_shards(workspace, stage, tokenizer, examples, get_run_logger().info)
    data = StageData(stage, examples, shards)
    publish_data(workspace.recipe, data)
    return data


@task(task_run_name="examples of {spec.name}", cache_policy=NO_CACHE)
def build_dataset_examples(workspace: Workspace, spec: DatasetSpec, settings: ExampleSettings, tables: Tables) -> Path:
    return dataset_examples(workspace, spec, settings, tables, get_run_logger().info)
