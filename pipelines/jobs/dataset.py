"""One dataset of a recipe, as the jobs see it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pipelines import sources
from pipelines.dedup.settings import Dedup
from pipelines.images.references import Links

Log = Callable[[str], None]


@dataclass(frozen=True)
class DatasetSpec:
    """One dataset of a recipe, with resolved paths."""

    name: str
    source: str
    annotations: Path
    images: Path
    max_turns: int = 1
    dedup: Dedup = Dedup()
    options: sources.SourceOptions = sources.DEFAULT_OPTIONS
    image_links: Links = "follow"

    @property
    def reader(self) -> sources.Source:
        return sources.get(self.source, self.options)

    @property
    def task(self) -> str:
        return self.reader.task

    @property
    def compares_vectors(self) -> bool:
        """Whether de-duplication of this dataset looks up embeddings."""
        return self.dedup.compares_vectors(self.task, self.max_turns)


class Tables(NamedTuple):
    """The two tables that are built once before the examples, as store entries."""

    images: Path | None = None  # of `build_images`; None: text-only work, images are not opened
    embeddings: Path | None = None  # of `build_embeddings`; None: no dataset compares vectors
