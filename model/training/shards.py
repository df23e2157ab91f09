"""Reads the samples of a shards directory by their place in the order, a few row groups in memory at a time."""

import bisect
import contextlib
import hashlib
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.images import ImageRoot
from pipelines.packing import Lengths, PackingError
from pipelines.remote import LocalCopy, RemoteError, is_url
from pipelines.shard_error import ShardError
from pipelines.shards import check_sizes, read_shards_manifest
from pipelines.store import file_sha256

log = logging.getLogger("honeybee.training")

SMALL_COLUMNS = ["index", "dataset", "example", "image_sha256", "input_ids", "loss_mask"]
COLUMNS = [*SMALL_COLUMNS, "images"]
UNREADABLE = "unreadable"  # stands for the dataset of a sample that cannot be read


class DataError(ValueError):
    """Training data that cannot be used; the message names the file or sample and what to do."""


@dataclass(frozen=True)
class EmbeddedImage:
    """An image in the shard. sha256: what its bytes were when the shard was built."""

    name: str
    data: bytes
    sha256: str

    def read(self) -> bytes:
        """Its bytes. Raises ValueError where they are not what they were."""
        return _checked(self.data, self.sha256, f"{self.name} is not the image that was written")


@dataclass(frozen=True)
class ImageFile:
    """An image that the shard only refers to. sha256: what its bytes were when the shard was built."""

    root: ImageRoot
    name: str
    sha256: str

    def read(self) -> bytes:
        """Its bytes. Raises ValueError where they are not what they were, or there is no such image; OSError."""
        problem = f"{self.name} is not the file that the shard was built with"
        return _checked(self.root.read(self.name), self.sha256, problem)


def _checked(data: bytes, sha256: str, problem: str) -> bytes:
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError(problem)
    return data


@dataclass(frozen=True)
class Example:
    """One sample. input_ids, loss_mask: (T,) with the image token once per image; images: what gives their encoded
    bytes. problem: why it cannot be trained on; it then keeps its place, without loss."""

    index: int  # place in the order of all samples
    dataset: str
    number: int  # place in its dataset
    input_ids: np.ndarray
    loss_mask: np.ndarray
    images: tuple[EmbeddedImage | ImageFile, ...]
    problem: str | None = None

    @property
    def name(self) -> str:
        return f"sample {self.index} ({self.dataset} example {self.number})"


class Shards:
    """The shards of a directory, or at a URL, as their manifest lists them.

    image_roots: dataset → the directory of its images, for shards that hold references instead of bytes. cache: for a
    URL, the local directory through which it is read, of at most `cache_bytes` (None: no limit).
    Raises DataError where the shards were not finished, or a file is missing, is not as long as the manifest says, does
    not follow the one before it, or holds other samples than its place says. What rots inside a file is found by the
    sums of its pages: the samples in question are given back with their `problem`.
    """

    def __init__(
        self,
        where: str | Path,
        image_roots: Mapping[str, Path] | None = None,
        cache: Path | None = None,
        cache_bytes: int | None = None,
    ):
        self.where = str(where)
        self._roots = {name: ImageRoot(root) for name, root in (image_roots or {}).items()}
        self._files: dict[int, _ShardFile] = {}
        self._copy = self._ahead = None
        try:
            if is_url(self.where):
                if cache is None:
                    raise DataError(f"{where} is read through a local directory: give loading.cache")
                self._copy = LocalCopy(self.where, cache, cache_bytes)
                self._ahead = _Ahead(LocalCopy(self.where, cache, cache_bytes, hold=1))
                manifest = self._copy.manifest
            else:
                manifest = read_shards_manifest(Path(where))
                check_sizes(Path(where), manifest)
            self._read_manifest(manifest)
        except (ShardError, RemoteError, PackingError) as error:
            raise DataError(str(error)) from None
        except KeyError as error:
            raise DataError(f"{where}/manifest.json has no {error}: it was made by another version") from None

    def _read_manifest(self, manifest: dict[str, Any]) -> None:
        self.num_samples: int = manifest["num_samples"]
        self.datasets: list[str] = list(manifest["datasets"])
        self.shares = {name: part["samples"] / self.num_samples for name, part in manifest["datasets"].items()}
        self.image_token_id: int = manifest["image_token_id"]
        self._filler = int(self.image_token_id == 0)  # a token that stands for those that cannot be read
        self.tokenizer: str = manifest["tokenizer"]
        self.key = manifest.get("key")
        self._names = [shard["file"] for shard in manifest["shards"]]
        self._firsts = [shard["first"] for shard in manifest["shards"]]
        lengths = self._path(manifest["lengths"]["file"])
        if file_sha256(lengths) != manifest["lengths"]["sha256"]:
            remedy = "build the shards again" if self._copy is None else "delete it, and it is brought again"
            raise DataError(f"{lengths} is not the file that was built: {remedy}")
        self.lengths = Lengths(lengths)
        counts = sum(shard["num_samples"] for shard in manifest["shards"]), len(self.lengths)
        if counts != (self.num_samples, self.num_samples):
            raise DataError(
                f"{self.where}: {counts[0]} samples in its shards, {counts[1]} lengths, {self.num_samples} in the "
                "manifest: build again"
            )

    def _path(self, name: str) -> Path:
        return Path(self.where) / name if self._copy is None else self._copy.fetch(name)

    def read(self, indices: Sequence[int], forget_before: int = 0) -> list[Example]:
        """The samples at these places, which ascend. Row groups stay in memory until none of their samples is at or
        after `forget_before`."""
        for shard in [s for s in self._files if self._end(s) <= forget_before]:
            self._files.pop(shard).close()
        for file in self._files.values():
            file.forget_before(forget_before)
        return [self._file_of(index).example(index) for index in indices]

    def _end(self, shard: int) -> int:
        return self._firsts[shard + 1] if shard + 1 < len(self._firsts) else self.num_samples

    def _file_of(self, index: int) -> "_ShardFile":
        if not 0 <= index < self.num_samples:
            raise IndexError(f"{self.where} has no sample {index}")
        shard = bisect.bisect_right(self._firsts, index) - 1
        if shard not in self._files:
            try:
                path = self._path(self._names[shard])
            except (ShardError, RemoteError) as error:
                raise DataError(str(error)) from None
            if self._ahead is not None and shard + 1 < len(self._names):
                self._ahead.fetch(self._names[shard + 1])
            first, end = self._firsts[shard], self._end(shard)
            self._files[shard] = _ShardFile(path, first, end, self.lengths, self._roots, self._filler)
        return self._files[shard]


class _Ahead:
    """Brings the next file while the one before it is read."""

    def __init__(self, copy: LocalCopy):
        self._copy = copy
        self._thread: threading.Thread | None = None

    def fetch(self, name: str) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._fetch, args=(name,), name="shards ahead", daemon=True)
            self._thread.start()

    def _fetch(self, name: str) -> None:
        with contextlib.suppress(ShardError, RemoteError):  # the reader will meet it, and say so
            self._copy.fetch(name)


class _ShardFile:
    """One open shard: samples first … end - 1."""

    def __init__(self, path: Path, first: int, end: int, lengths: Lengths, roots: Mapping[str, ImageRoot], filler: int):
        self.path, self.lengths, self.roots, self.filler = path, lengths, roots, filler
        try:
            self._file = pq.ParquetFile(path, page_checksum_verification=True)
            self._unchecked = pq.ParquetFile(path, metadata=self._file.metadata)
            missing = sorted(set(COLUMNS) - set(self._file.schema_arrow.names))
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read: {error}") from None
        if missing:
            raise DataError(f"{path} has no columns {missing}: it was made by another version")
        groups = [self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups)]
        self._firsts = [first, *(first + np.cumsum(groups)).tolist()]
        if self._firsts[-1] != end:
            raise DataError(f"{path} does not hold the {end - first} samples that its manifest says")
        self._groups: dict[int, _RowGroup] = {}

    def example(self, index: int) -> Example:
        group = bisect.bisect_right(self._firsts, index) - 1
        if group not in self._groups:
            self._groups[group] = self._read(group)
        return self._groups[group].example(index)

    def forget_before(self, index: int) -> None:
        for group in [g for g in self._groups if self._firsts[g + 1] <= index]:
            del self._groups[group]

    def close(self) -> None:
        self._file.close()
        self._unchecked.close()

    def _read(self, group: int) -> "_RowGroup":
        first, end = self._firsts[group], self._firsts[group + 1]
        place = f"{self.path}, row group {group}"
        try:
            table = self._file.read_row_group(group, columns=SMALL_COLUMNS)
            # Without the sums of their pages, which take ten times as long: every image has a sum of its own.
            images = self._unchecked.read_row_group(group, columns=["images"])
            table = table.append_column("images", images["images"])
            table.validate(full=True)  # no sum covers the heads of the pages
        except (pa.ArrowException, OSError) as error:
            log.warning("%s is damaged: %s", place, error)
            return _RowGroup(first, None, f"{place}: {error}", self.lengths, self.roots, self.filler)
        index = table["index"].combine_chunks().to_numpy(zero_copy_only=False)
        if not np.array_equal(index, np.arange(first, end)):
            raise DataError(
                f"{place}, does not hold samples {first} and following: files were swapped or edited; build the "
                "shards again"
            )
        self._check_lengths(first, table, place)
        return _RowGroup(first, table, None, self.lengths, self.roots, self.filler)

    def _check_lengths(self, first: int, table: pa.Table, place: str) -> None:
        """Raises DataError unless the samples are as long as the plan takes them for: a pack would hold too much."""
        planned = self.lengths.read(first, first + len(table))
        for what, column, says in (("tokens", "input_ids", planned[0]), ("images", "image_sha256", planned[1])):
            counts = pc.fill_null(pc.list_value_length(table[column].combine_chunks()), 0)
            found = counts.to_numpy(zero_copy_only=False)
            wrong = np.flatnonzero(found != says)
            if len(wrong):
                row = int(wrong[0])
                raise DataError(
                    f"{place}: sample {first + row} has {found[row]} {what}, {self.lengths.path} says {says[row]}: "
                    "they are not of one build; build the shards again"
                )


class _RowGroup:
    """The samples of a row group, each made when it is asked for. damage: why there is no table."""

    def __init__(
        self,
        first: int,
        table: pa.Table | None,
        damage: str | None,
        lengths: Lengths,
        roots: Mapping[str, ImageRoot],
        filler: int,
    ):
        self.first, self.damage, self.lengths, self.roots, self.filler = first, damage, lengths, roots, filler
        self.columns = {} if table is None else {name: table[name].combine_chunks() for name in COLUMNS}

    def example(self, index: int) -> Example:
        if self.damage:
            return self._unreadable(index, self.damage)
        row = index - self.first
        values = {name: self.columns[name][row] for name in ("dataset", "example", "image_sha256", "images")}
        dataset = values["dataset"].as_py()
        input_ids, loss_mask = (
            self.columns[name][row].values.to_numpy(zero_copy_only=False) for name in ("input_ids", "loss_mask")
        )
        name = f"sample {index} ({dataset} example {values['example'].as_py()})"
        if len(input_ids) != len(loss_mask):
            raise DataError(f"{name}: {len(input_ids)} tokens, but a loss mask of {len(loss_mask)}")
        images: list[EmbeddedImage | ImageFile] = []
        sums = values["image_sha256"].as_py() or ()
        encoded = values["images"].as_py() or ()
        if len(encoded) != len(sums):
            return self._unreadable(index, f"{len(encoded)} images, but {len(sums)} were written")
        for image, sha256 in zip(encoded, sums, strict=True):
            if image["bytes"] is not None:
                images.append(EmbeddedImage(image["path"], image["bytes"], sha256))
            elif dataset in self.roots:
                images.append(ImageFile(self.roots[dataset], image["path"], sha256))
            else:
                raise DataError(
                    f"{name} has an image reference but no bytes, and no image root is given for {dataset}: build the "
                    "shards with `images: embed`"
                )
        return Example(index, dataset, values["example"].as_py(), input_ids, loss_mask, tuple(images))

    def _unreadable(self, index: int, problem: str) -> Example:
        tokens = int(self.lengths.read(index, index + 1)[0, 0])
        nothing, unlearned = np.full(tokens, self.filler, np.int32), np.zeros(tokens, bool)
        return Example(index, UNREADABLE, index, nothing, unlearned, (), problem)
