"""The workspace that every step of a run needs: the recipe, the store, and the directory of the official files."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.recipe.data import Stage
from flows.recipe.recipe import Recipe, SampleCorpus
from model.evaluation.interface import BenchmarkFiles
from pipelines.core.store import MANIFEST, Store
from pipelines.jobs.dataset import DatasetSpec
from pipelines.sample_corpus import VERSION as SAMPLE_VERSION
from pipelines.sample_corpus import write_sample
from pipelines.sources import SourceOptions
from pipelines.sources.generic import hub

STAGES = ("pretrain", "finetune")
BACKBONES_VERSION = 1  # raise it when a change to model/training/sample_backbones.py affects the trained weights
Log = Callable[[str], None]


@dataclass(frozen=True)
class Workspace:
    recipe: Recipe
    store: Store
    data: Path  # base of relative annotation, image and benchmark paths

    def stage(self, name: str) -> Stage:
        return self.recipe.stage(name)

    def spec(self, dataset: str) -> DatasetSpec:
        """Returns the build specification of one of the recipe's datasets, after downloading it if it is on the hub.
        Raises SourceError if the download fails."""
        part = self.recipe.datasets[dataset]
        annotations, files = self.data / (part.annotations or ""), part.files
        if part.hub is not None:
            annotations, files = hub.snapshot(part.hub, part.revision, part.files)
        return DatasetSpec(
            name=dataset,
            source=part.source or dataset,
            annotations=annotations,
            images=self.data / part.images if part.images else annotations,
            options=SourceOptions(columns=part.columns, files=files),
            max_turns=part.max_turns,
            dedup=part.dedup,
            image_links=part.image_links or self.recipe.image_links,
        )

    def benchmark(self, name: str) -> tuple[Path, Path]:
        """Returns the path of the official files of a benchmark in `evaluation`, and the root of its images."""
        part = self.recipe.evaluation.benchmarks[name]
        return self.official(part.path, part.images)

    def official(self, path: Path, images: Path | None) -> tuple[Path, Path]:
        """Returns the same for any benchmark."""
        files = BenchmarkFiles(path=self.data / path, images=self.data / images if images else None)
        return files.path, files.root

    def specs(self, stage: str) -> list[DatasetSpec]:
        """Returns the specifications of the datasets of a stage, sorted by name."""
        return [self.spec(name) for name in self.stage(stage).data.names]

    def backbones_key(self) -> dict[str, Any]:
        """Returns the fingerprint key of the backbones that the recipe trains itself."""
        assert self.recipe.backbones.train is not None
        settings = self.recipe.backbones.train.model_dump()
        return {"version": BACKBONES_VERSION, "corpus": self.data.name, **settings}

    def llm(self) -> str | None:
        """Returns the language model as a hub name or a directory, or None if it is not trained yet."""
        if self.recipe.backbones.train is None:
            return self.recipe.backbones.llm
        directory = self.store.path("backbones", self.backbones_key())
        return str(directory / "output" / "llm") if (directory / MANIFEST).is_file() else None


def locate_workspace(recipe: Recipe, log: Log | None = None) -> Workspace:
    """Returns the workspace without generating anything: its sample corpus may not exist yet."""
    return workspace_at(recipe, Store(recipe.paths.store, log=log), recipe.paths.data)


def workspace_at(recipe: Recipe, store: Store, data: Path) -> Workspace:
    """Returns the workspace of a recipe with another store and other official files than its own paths name."""
    if recipe.sample is None:
        return Workspace(recipe, store, data.resolve())
    return Workspace(recipe, store, store.path("corpora", _corpus_key(recipe.sample)))


def open_workspace(recipe: Recipe, log: Log = print) -> Workspace:
    """Returns the workspace, after generating the sample corpus in the store if the recipe uses one."""
    workspace = locate_workspace(recipe, log)
    if recipe.sample is not None:
        settings = recipe.sample.model_dump()

        def make(directory: Path) -> dict:
            log(f"Generating the sample corpus: {settings['scenes']:,} scenes, {settings['held_out']:,} more held out")
            return write_sample(directory, **settings, clear=True)

        workspace.store.produce("corpora", _corpus_key(recipe.sample), make)
        log(f"Sample corpus: {workspace.data}")
    return workspace


def _corpus_key(sample: SampleCorpus) -> dict:
    return {**sample.model_dump(), "version": SAMPLE_VERSION}
