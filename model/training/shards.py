"""Reads the samples of a shards directory by their place in the order, one row group in memory at a time."""

import bisect
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.store import read_manifest

COLUMNS = ["index", "dataset", "example", "images", "input_ids", "loss_mask"]


class DataError(ValueError):
    """Training data that cannot be used; the message names the file or sample and what to do."""


@dataclass(frozen=True)
class Example:
    """One sample. input_ids, loss_mask: (T,) with the image token once per image; images: their encoded bytes."""

    index: int  # place in the order of all samples
    dataset: str
    number: int  # place in its dataset
    input_ids: np.ndarray
    loss_mask: np.ndarray
    images: tuple[bytes, ...]

    @property
    def name(self) -> str:
        return f"sample {self.index} ({self.dataset} example {self.number})"


class Shards:
    """The shards of a directory as its manifest lists them.

    Raises DataError where the directory was not finished, or a shard is missing, is not as long as the manifest says,
    does not follow the one before it, or holds other samples than its place says.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        try:
            manifest = read_manifest(directory)
        except (FileNotFoundError, json.JSONDecodeError) as error:
            raise DataError(f"{directory} holds no finished shards: {error}") from None
        try:
            self.num_samples: int = manifest["num_samples"]
            self.datasets: list[str] = list(manifest["datasets"])
            self.image_token_id: int = manifest["image_token_id"]
            self.tokenizer: str = manifest["tokenizer"]
            self.key = manifest.get("key")
            files = manifest["shards"]
            self._firsts = [shard["first"] for shard in files]
            self._files = [directory / shard["file"] for shard in files]
            expected = 0
            for shard, path in zip(files, self._files, strict=True):
                if shard["first"] != expected:
                    raise DataError(f"{path} begins at sample {shard['first']}, but {expected} comes next")
                expected += shard["num_samples"]
                found = path.stat().st_size if path.is_file() else None
                if found is None:
                    raise DataError(f"{path} is missing: build the shards again")
                if found != shard["num_bytes"]:
                    raise DataError(f"{path} has {found} bytes, its manifest says {shard['num_bytes']}: build it again")
        except KeyError as error:
            raise DataError(f"{directory}/manifest.json has no {error}: it was made by another version") from None
        if expected != self.num_samples:
            raise DataError(f"{directory}: {expected} samples in its shards, {self.num_samples} in the manifest")
        self._open_shard: tuple[int, pq.ParquetFile, list[int]] | None = None
        self._open_group: tuple[int, int, list[Example]] | None = None

    def read(self, start: int, stop: int) -> Iterator[Example]:
        """The samples start, start + 1, … stop - 1. Cheapest where `start` never goes back."""
        while start < stop:
            first, examples = self._group_of(start)
            taken = examples[start - first : stop - first]
            yield from taken
            start += len(taken)

    def _group_of(self, index: int) -> tuple[int, list[Example]]:
        """The row group that holds sample `index`: (its first sample, its samples)."""
        shard = bisect.bisect_right(self._firsts, index) - 1
        if self._open_shard is None or self._open_shard[0] != shard:
            self._open_shard = (shard, *self._open(shard))
            self._open_group = None
        _, file, firsts = self._open_shard
        group = bisect.bisect_right(firsts, index) - 1
        if self._open_group is None or self._open_group[0] != group:
            self._open_group = None  # let go of the last before the next is read
            try:
                table = file.read_row_group(group, columns=COLUMNS)
            except (pa.ArrowException, OSError) as error:
                raise DataError(f"{self._files[shard]}, row group {group}, cannot be read: {error}") from None
            examples = list(_examples(table))
            if [example.index for example in examples] != list(range(firsts[group], firsts[group] + len(examples))):
                raise DataError(
                    f"{self._files[shard]}, row group {group}, does not hold samples {firsts[group]} and following: "
                    "files were swapped or edited; build the shards again"
                )
            self._open_group = (group, firsts[group], examples)
        return self._open_group[1:]

    def _open(self, shard: int) -> tuple[pq.ParquetFile, list[int]]:
        path = self._files[shard]
        try:
            file = pq.ParquetFile(path, page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path} cannot be read: {error}") from None
        missing = sorted(set(COLUMNS) - set(file.schema_arrow.names))
        if missing:
            raise DataError(f"{path} has no columns {missing}: it was made by another version")
        first = self._firsts[shard]
        end = self._firsts[shard + 1] if shard + 1 < len(self._firsts) else self.num_samples
        firsts = []
        for group in range(file.metadata.num_row_groups):
            firsts.append(first)
            first += file.metadata.row_group(group).num_rows
        if first != end:
            raise DataError(f"{path} does not hold the {end - self._firsts[shard]} samples that its manifest says")
        return file, firsts


def _examples(table: pa.Table) -> Iterator[Example]:
    columns = {name: table[name].combine_chunks() for name in COLUMNS}
    index, dataset, number = (columns[name].to_pylist() for name in ("index", "dataset", "example"))
    ids, masks, images = (columns[name] for name in ("input_ids", "loss_mask", "images"))
    ids_at, masks_at, images_at = (column.offsets.to_pylist() for column in (ids, masks, images))
    # `values` is the child of all rows, before any slicing; offsets point into it.
    id_values = ids.values.to_numpy(zero_copy_only=False)
    mask_values = masks.values.to_numpy(zero_copy_only=False)
    encoded = images.values.field("bytes")
    for row in range(table.num_rows):
        name = f"sample {index[row]} ({dataset[row]} example {number[row]})"
        own = [encoded[i].as_py() for i in range(images_at[row], images_at[row + 1])] if images[row].is_valid else []
        if None in own:
            raise DataError(f"{name} has an image reference but no bytes: build the shards with `images: embed`")
        input_ids, loss_mask = (
            id_values[ids_at[row] : ids_at[row + 1]],
            mask_values[masks_at[row] : masks_at[row + 1]],
        )
        if len(input_ids) != len(loss_mask):
            raise DataError(f"{name}: {len(input_ids)} tokens, but a loss mask of {len(loss_mask)}")
        yield Example(index[row], dataset[row], number[row], input_ids, loss_mask, tuple(own))
