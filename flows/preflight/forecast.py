"""Forecasts the examples and the share of each dataset of a recipe: exactly if it is built, otherwise estimated from
its files. Reads the store, works in memory and writes nothing."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from flows.data.decontamination import decontamination
from flows.data.stage_data import dataset_examples, example_settings
from flows.runs.workspace import Workspace
from pipelines import sources
from pipelines.core.arrow_files import read_table
from pipelines.core.store import BIG_FILE, NotBuilt, Store, read_manifest
from pipelines.decontamination.match import Decontamination
from pipelines.jobs.annotations import annotation_batches, build_annotations
from pipelines.jobs.dataset import DatasetSpec, Tables
from pipelines.jobs.estimate import count_examples, estimate
from pipelines.jobs.find_built import find_embeddings_table, find_images_table, newest_examples
from pipelines.jobs.tokenizer import prepare_tokenizer
from pipelines.mixture.order import MixtureError, mix
from pipelines.mixture.shares import BalanceError, wanted_shares
from pipelines.schema import ANNOTATIONS
from pipelines.tokens.tokenizer import TokenizerError


@dataclass(frozen=True)
class Known:
    """The totals over all examples of a dataset; None where a total is unknown. origin: how they were obtained."""

    origin: str
    rows: int | None = None
    examples: int | None = None
    turns: float | None = None
    tokens: float | None = None  # excluding image tokens
    supervised: float | None = None
    images: float | None = None
    ledgers: Mapping[str, Any] | None = None  # of the rows and turns that were rendered; None if none were
    all_rendered: bool = False  # a build rejects at least what the ledgers count

    @property
    def is_built(self) -> bool:
        return self.origin == BUILT

    def each(self, value: float | None) -> float | None:
        """Returns `value`, one of the totals, per example."""
        return value / self.examples if value is not None and self.examples else None


BUILT, OLDER_BUILD = "built", "older build, from different files or settings"


class Forecaster:
    """Forecasts datasets. scratch: an empty directory outside the store, for a tokenizer that is not yet in the store.
    lack: why there is no tokenizer, or an empty string."""

    def __init__(self, workspace: Workspace, scratch: Path):
        self.workspace = replace(workspace, store=Store(workspace.store.root, read_only=True))
        self._annotations: dict[str, pa.Table | None] = {}
        self.tokenizer, self.lack = self._tokenizer(scratch)
        self._embeddings = self._find_embeddings()
        self._benchmarks = self._find_benchmarks()

    def known(self, stage: str, dataset: str) -> Known:
        """Returns what is known of a dataset in a stage, from the best available source: its built examples, a rendered
        sample of its rows, an older build, or a count of its rows."""
        try:
            spec = self.workspace.spec(dataset)
            spec.reader.files(spec.annotations)
        except sources.SourceError:
            return Known("unknown: files are missing")
        built = self._built(stage, spec)
        if built is not None:
            return _of_manifest(built, BUILT)
        annotations = self._read(spec)
        if annotations is not None and self.tokenizer is not None:
            return self._rendered(stage, spec, annotations, self.tokenizer)
        older = newest_examples(self.workspace.store, dataset)
        if older is not None:
            return _of_manifest(older, OLDER_BUILD)
        if annotations is None:
            return Known("unknown: files are too large for a dry run")
        groups = count_examples(annotations, spec.task == "conversation", spec.max_turns)
        return Known("number of rows, before rejects and duplicates", annotations.num_rows, groups)

    def _tokenizer(self, scratch: Path) -> tuple[Path | None, str]:
        """Returns the tokenizer's directory, or None and the reason."""
        llm = self.workspace.llm()
        if llm is None:
            return None, "the tokenizer belongs to the language model, which is not trained yet"
        try:
            return prepare_tokenizer(self.workspace.store, llm), ""
        except NotBuilt:
            pass
        try:
            return prepare_tokenizer(Store(scratch), llm, local_files_only=True), ""
        except OSError:
            return None, f"the tokenizer of {llm} is not on this host"
        except TokenizerError as error:
            return None, str(error)

    def _find_embeddings(self) -> Path | None:
        recipe = self.workspace.recipe
        with contextlib.suppress(sources.SourceError):  # `known` reports it
            if any(recipe.compares_vectors(name) for name in recipe.datasets):
                return find_embeddings_table(self.workspace.store, recipe.embedder.model, recipe.embedder.device)
        return None

    def _find_benchmarks(self) -> Decontamination | None:
        """Returns the benchmark items to compare with; None if some are not in the store or no benchmark is listed."""
        try:
            return decontamination(self.workspace, _quiet)
        except (NotBuilt, ValueError, OSError):  # check_inputs reports a benchmark that cannot be read
            return None

    def _images(self, spec: DatasetSpec) -> Path | None:
        """Returns the directory of the dataset's image table, or None if images are skipped. Raises NotBuilt."""
        if self.workspace.recipe.images == "skip":
            return None
        return find_images_table(self.workspace.store, spec)

    def _built(self, stage: str, spec: DatasetSpec) -> Path | None:
        """Returns the directory of the examples that a build of this recipe would reuse, or None."""
        workspace = self.workspace
        listed = workspace.recipe.decontamination is not None
        if self.tokenizer is None or (listed and self._benchmarks is None):
            return None
        try:
            images = self._images(spec)
        except NotBuilt:
            return None
        settings = example_settings(workspace, stage, spec, self.tokenizer, self._benchmarks)
        for embeddings in (self._embeddings, None):  # a build without texts to compare has no embeddings
            try:
                return dataset_examples(workspace, spec, settings, Tables(images, embeddings), _quiet)
            except NotBuilt:
                continue
        return None

    def _read(self, spec: DatasetSpec) -> pa.Table | None:
        """Returns a dataset's annotations from the store or from its files; None if the files are too large."""
        if spec.name not in self._annotations:
            schema = ANNOTATIONS[spec.task]
            source = spec.reader
            try:
                batches = annotation_batches(build_annotations(self.workspace.store, spec, _quiet))
                self._annotations[spec.name] = pa.Table.from_batches(batches, schema)
            except NotBuilt:
                small = sum(path.stat().st_size for path in source.files(spec.annotations)) <= BIG_FILE
                read = pa.Table.from_batches(source.read(spec.annotations), schema) if small else None
                self._annotations[spec.name] = read
        return self._annotations[spec.name]

    def _rendered(self, stage: str, spec: DatasetSpec, annotations: pa.Table, tokenizer: Path) -> Known:
        if not annotations.num_rows:
            return Known("its files contain no rows", 0, 0)
        recipe = self.workspace.recipe
        settings = example_settings(self.workspace, stage, spec, tokenizer, self._benchmarks)
        try:
            measured = self._images(spec)
        except NotBuilt:
            measured = None
        images = read_table(measured / "images.arrow") if measured else None
        found = estimate(spec, annotations, settings, self._embeddings, images, recipe.images != "skip")
        not_removed = list(found.not_removed)
        if recipe.decontamination is not None and self._benchmarks is None:
            not_removed.append("overlaps")
        how = "all rows" if found.rendered == annotations.num_rows else f"{found.rendered:,} rows"
        origin = f"estimated from {how}" + (f", before {' and '.join(not_removed)}" if not_removed else "")
        return Known(
            origin=origin,
            rows=annotations.num_rows,
            examples=found.examples,
            turns=found.turns,
            tokens=found.tokens,
            supervised=found.supervised,
            images=found.images,
            ledgers=found.ledgers,
            all_rendered=found.rendered == annotations.num_rows,
        )


@dataclass(frozen=True)
class StageForecast:
    """Target shares, actual shares and samples by dataset; None where they depend on sizes that are not known yet."""

    wanted: Mapping[str, float] | None = None
    shares: Mapping[str, float] | None = None
    samples: Mapping[str, int] | None = None
    capped: frozenset[str] = frozenset()
    problem: str | None = None  # why the mixture is impossible


def stage_forecast(workspace: Workspace, stage: str, known: Mapping[str, Known]) -> StageForecast:
    """Forecasts how the samples of a stage are distributed over its datasets."""
    part = workspace.stage(stage)
    data, num_samples = part.data, part.samples
    balance, in_tokens = data.balance, data.balance.unit == "supervised_tokens"
    tasks = {name: workspace.recipe.source(name).task for name in data.names}
    needed = [known[name].supervised if in_tokens else known[name].examples for name in data.names]
    wanted = None if balance.wants_sizes else wanted_shares(balance, data.names, data.weights, tasks, None)
    if balance.needs_sizes and None in needed:
        return StageForecast(wanted)
    built: dict[str, dict[str, Any]] = {}
    for name in data.names:
        examples, supervised = known[name].examples, known[name].supervised
        built[name] = {
            "task": tasks[name],
            "num_examples": 1 if examples is None else examples,  # any number works where the size is not needed
            "num_supervised": 1 if supervised is None else supervised,
        }
    try:
        got, mixture = mix(balance, data.weights, built, num_samples, workspace.recipe.seed)
    except (BalanceError, MixtureError) as error:
        return StageForecast(wanted, problem=str(error))
    samples = mixture.counts(num_samples)
    amounts = {
        name: count * built[name]["num_supervised"] / built[name]["num_examples"] if in_tokens else count
        for name, count in samples.items()
    }
    total = sum(amounts.values())
    shares = {name: amount / total for name, amount in amounts.items()}
    return StageForecast(got.wanted, shares, samples, got.capped)


def _of_manifest(directory: Path, origin: str) -> Known:
    manifest = read_manifest(directory)
    return Known(
        origin,
        rows=manifest["rows"]["read"],
        examples=manifest["num_examples"],
        turns=manifest["turns"]["examples"],
        tokens=manifest["num_tokens"] - manifest["num_images"],
        supervised=manifest["num_supervised"],
        images=manifest["num_images"],
        ledgers=manifest if origin == BUILT else None,
        all_rendered=origin == BUILT,
    )


def _quiet(line: str) -> None:
    """Discards a log line: a forecast only looks things up, so there is nothing to report."""
