"""One dataset of a recipe, as the jobs see it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipelines import sources

Log = Callable[[str], None]


@dataclass(frozen=True)
class DatasetSpec:
    """One dataset of a recipe, with resolved paths."""

    name: str
    source: str
    annotations: Path
    images: Path
    max_turns: int = 1
    dedup_rule: str = "semantic"
    dedup_compare: str = "pair"
    dedup_threshold: float | None = None
    options: sources.SourceOptions = sources.DEFAULT_OPTIONS

    @property
    def reader(self) -> sources.Source:
        return sources.get(self.source, self.options)

    @property
    def task(self) -> str:
        return self.reader.task
