"""The examples of a dataset, as build_examples left them: any of them at once, and what each weighs."""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipelines.arrow_files import open_batches
from pipelines.schema import EXAMPLES
from pipelines.shard_error import ShardError
from pipelines.store import file_sha256, read_manifest


class ExampleFiles:
    """Random access to the examples of a dataset, through the memory map: nothing is loaded but what is asked for."""

    def __init__(self, directory: Path):
        self.directory = directory
        manifest = read_manifest(directory)
        self._readers = [open_batches(directory / file) for file, count, _ in manifest["files"] if count]
        starts = [0]
        self._places: list[tuple[int, int]] = []
        for number, reader in enumerate(self._readers):
            for batch in range(reader.num_record_batches):
                self._places.append((number, batch))
                starts.append(starts[-1] + reader.get_batch(batch).num_rows)
        self._starts = np.array(starts)
        if starts[-1] != manifest["num_examples"]:
            raise ShardError(f"{directory}: {starts[-1]} examples, its manifest says {manifest['num_examples']}")

    @staticmethod
    @functools.lru_cache(maxsize=64)
    def of(directory: Path) -> "ExampleFiles":
        return ExampleFiles(directory)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def take(self, examples: np.ndarray, columns: Sequence[str] = EXAMPLES.names) -> pa.Table:
        """The rows of the given examples, (n,) integers in any order, in that order."""
        order = np.argsort(examples, kind="stable")
        batch_of = np.searchsorted(self._starts, examples[order], side="right") - 1
        pieces = []
        for batch in np.unique(batch_of):
            local = examples[order][batch_of == batch] - self._starts[batch]
            pieces.append(self._batch(batch).select(columns).take(pa.array(local)))
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return pa.Table.from_batches(pieces).combine_chunks().take(pa.array(back))

    def batches(self, columns: Sequence[str]):
        """All examples, in order."""
        for batch in range(len(self._places)):
            yield self._batch(batch).select(columns)

    def _batch(self, batch: int) -> pa.RecordBatch:
        number, inner = self._places[batch]
        return self._readers[number].get_batch(inner)


def verify_examples(directory: Path) -> None:
    """Raises ShardError unless every examples file is the one that was built."""
    for name, _, digest in read_manifest(directory)["files"]:
        path = directory / name
        if not path.is_file() or file_sha256(path) != digest:
            raise ShardError(f"{path} is not what was built: remove {directory} and build again")
