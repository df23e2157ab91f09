"""Random access to the examples files of a dataset, as written by build_examples."""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipelines.core.arrow_files import open_batches
from pipelines.core.errors import ShardError
from pipelines.core.store import read_manifest
from pipelines.schema import EXAMPLES


class ExampleFiles:
    """Memory-mapped random access to the examples of a dataset. Only the requested examples are loaded."""

    def __init__(self, directory: Path):
        self.directory = directory
        manifest = read_manifest(directory)
        self._readers = [open_batches(directory / file) for file, count in manifest["files"] if count]
        starts = [0]
        self._batches: list[tuple[int, int]] = []  # (file, batch in that file)
        for file, reader in enumerate(self._readers):
            for batch in range(reader.num_record_batches):
                self._batches.append((file, batch))
                starts.append(starts[-1] + reader.get_batch(batch).num_rows)
        self._starts = np.array(starts)
        if starts[-1] != manifest["num_examples"]:
            raise ShardError(
                f"{directory} has {starts[-1]} examples, but its manifest records {manifest['num_examples']}: "
                "remove the directory and build again"
            )

    @staticmethod
    @functools.lru_cache(maxsize=64)
    def of(directory: Path) -> "ExampleFiles":
        return ExampleFiles(directory)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def take(self, examples: np.ndarray, columns: Sequence[str] = EXAMPLES.names) -> pa.Table:
        """Returns the given examples as a table, in the given order. examples: (n,) indices, in any order."""
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
        """Yields all examples in order, batch by batch."""
        for batch in range(len(self._batches)):
            yield self._batch(batch).select(columns)

    def _batch(self, batch: int) -> pa.RecordBatch:
        file, inner = self._batches[batch]
        return self._readers[file].get_batch(inner)
