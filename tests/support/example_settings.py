"""Example settings with the fine templates and the chat style of the paper."""

from pathlib import Path
from typing import Any

from pipelines.dedup.settings import Dedup
from pipelines.examples.settings import ExampleSettings
from pipelines.jobs.dataset import DatasetSpec
from pipelines.templates.sets import load_templates
from pipelines.tokens.chat_style import load_chat_template


def example_settings(
    tokenizer: Path, dataset: str = "vqav2", task: str = "open_question", **changes: Any
) -> ExampleSettings:
    values: dict[str, Any] = {
        "dataset": dataset,
        "task": task,
        "templates": load_templates("fine", dataset, task),
        "chat": load_chat_template("honeybee"),
        "tokenizer": tokenizer,
        "max_text_tokens": 400,
        "dedup": Dedup(rule="off"),
    }
    return ExampleSettings(**{**values, **changes})


def settings_of(spec: DatasetSpec, tokenizer: Path, **changes: Any) -> ExampleSettings:
    """The settings of a dataset whose specification chooses turns and de-duplication."""
    return example_settings(
        tokenizer, spec.name, spec.task, **{"max_turns": spec.max_turns, "dedup": spec.dedup, **changes}
    )
