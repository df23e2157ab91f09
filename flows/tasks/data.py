"""Builds the data of a stage as Prefect tasks: one task for the stage and one for each of its datasets."""

from pathlib import Path

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from flows.data.stage_data import StageData, dataset_examples, stage_data
from flows.report.artifacts import publish_data
from flows.runs.workspace import Workspace
from pipelines.examples.settings import ExampleSettings
from pipelines.jobs.dataset import DatasetSpec, Tables


@task(task_run_name="{stage} data", cache_policy=NO_CACHE)
def build_stage_data(workspace: Workspace, stage: str, tokenizer: Path) -> StageData:
    """Runs `stage_data` with a subtask for each dataset, and publishes the result as artifacts."""
    data = stage_data(workspace, stage, tokenizer, build_dataset_examples, get_run_logger().info)
    publish_data(workspace.recipe, data)
    return data


@task(task_run_name="examples of {spec.name}", cache_policy=NO_CACHE)
def build_dataset_examples(workspace: Workspace, spec: DatasetSpec, settings: ExampleSettings, tables: Tables) -> Path:
    return dataset_examples(workspace, spec, settings, tables, get_run_logger().info)
