"""Reads the samples of a shards directory by index, with a few row groups in memory at a time."""

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

from pipelines.core.errors import ShardError
from pipelines.core.files import file_sha256
from pipelines.images.references import ImageRoot
from pipelines.packing.plan import Lengths, PackingError
from pipelines.shards.local_copy import ShardCache
from pipelines.shards.manifest import check_sizes, read_shards_manifest
from pipelines.shards.remote import RemoteError, is_url

log = logging.getLogger("honeybee.training")

SMALL_COLUMNS = ["index", "dataset", "example", "image_sha256", "input_ids", "loss_mask"]
COLUMNS = [*SMALL_COLUMNS, "images"]
UNREADABLE = "unreadable"  # the dataset name of a sample that cannot be read


class DataError(ValueError):
    """Raised if training data cannot be used; the message names the file or sample and says what to do."""


@dataclass(frozen=True)
class EmbeddedImage:
    """An image stored in the shard. sha256: the checksum of its bytes when the shard was built."""

    name: str
    data: bytes
    sha256: str

    def read(self) -> bytes:
        """Returns the bytes. Raises ValueError if their checksum does not match."""
        return _checked(self.data, self.sha256, f"{self.name} does not match its checksum in the shard")


@dataclass(frozen=True)
class ImageFile:
    """An image that the shard only refers to. sha256: the checksum of its bytes when the shard was built."""

    root: ImageRoot
    name: str
    sha256: str

    def read(self) -> bytes:
        """Returns the bytes. Raises ValueError if the checksum does not match or the image is missing, or OSError."""
        problem = f"{self.name} has changed since the shard was built"
        return _checked(self.root.read(self.name), self.sha256, problem)


def _checked(data: bytes, sha256: str, problem: str) -> bytes:
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError(problem)
    return data


@dataclass(frozen=True)
class Example:
    """One sample. input_ids, loss_mask: (T,), with the image token once per image. images: sources of the encoded
    bytes. problem: why the sample cannot be trained on; it then keeps its slot, without loss."""

    index: int  # in the order of all samples
    dataset: str
    number: int  # index in its dataset
    input_ids: np.ndarray
    loss_mask: np.ndarray
    images: tuple[EmbeddedImage | ImageFile, ...]
    problem: str | None = None

    @property
    def name(self) -> str:
        return f"sample {self.index} ({self.dataset} example {self.number})"


class Shards:
    """The shards in a directory or at a URL, as listed in their manifest.

    image_roots: dataset → directory of its images, for shards that hold references instead of bytes. cache: for a URL,
    the local cache directory, limited to `cache_bytes` (None: no limit).
    Raises DataError if the shards are unfinished, or a file is missing, differs in size from the manifest, does not
    follow its predecessor, or holds the wrong samples. Damage inside a file is detected by page checksums: the affected
    samples are returned with their `problem`.
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
                    raise DataError(f"{where} is a URL, which needs a local cache directory: set loading.cache")
                self._copy = ShardCache(self.where, cache, cache_bytes)
                self._ahead = _Ahead(ShardCache(self.where, cache, cache_bytes, hold=1))
                manifest = self._copy.manifest
            else:
                manifest = read_shards_manifest(Path(where))
                check_sizes(Path(where), manifest)
            self._read_manifest(manifest)
        except (ShardError, RemoteError, PackingError) as error:
            raise DataError(str(error)) from None
        except KeyError as error:
            raise DataError(f"{where}/manifest.json has no {error}: it was written by a different version") from None

    def _read_manifest(self, manifest: dict[str, Any]) -> None:
        self.num_samples: int = manifest["num_samples"]
        self.datasets: list[str] = list(manifest["datasets"])
        self.shares = {name: part["samples"] / self.num_samples for name, part in manifest["datasets"].items()}
        self.image_token_id: int = manifest["image_token_id"]
        self._filler = int(self.image_token_id == 0)  # replaces the tokens of unreadable samples; not the image token
        self.tokenizer: str = manifest["tokenizer"]
        self.key = manifest.get("key")
        self._names = [shard["file"] for shard in manifest["shards"]]
        self._firsts = [shard["first"] for shard in manifest["shards"]]
        lengths = self._path(manifest["lengths"]["file"])
        if file_sha256(lengths) != manifest["lengths"]["sha256"]:
            remedy = "rebuild the shards" if self._copy is None else "delete it, then run again to download it anew"
            raise DataError(f"{lengths} does not match its checksum in the manifest: {remedy}")
        self.lengths = Lengths(lengths)
        counts = sum(shard["num_samples"] for shard in manifest["shards"]), len(self.lengths)
        if counts != (self.num_samples, self.num_samples):
            raise DataError(
                f"{self.where}: {counts[0]} samples in its shards, {counts[1]} in lengths.parquet, but "
                f"{self.num_samples} in the manifest: rebuild the shards"
            )

    def _path(self, name: str) -> Path:
        return Path(self.where) / name if self._copy is None else self._copy.fetch(name)

    def read(self, indices: Sequence[int], forget_before: int = 0) -> list[Example]:
        """Returns the samples at these indices, which should ascend. Row groups are freed once all their samples are
        before `forget_before`."""
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
    """Downloads the next file in the background while the current one is read."""

    def __init__(self, copy: ShardCache):
        self._copy = copy
        self._thread: threading.Thread | None = None

    def fetch(self, name: str) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._fetch, args=(name,), name="shards ahead", daemon=True)
            self._thread.start()

    def _fetch(self, name: str) -> None:
        with contextlib.suppress(ShardError, RemoteError):  # the reader will hit and report the same error
            self._copy.fetch(name)


class _ShardFile:
    """One open shard with the samples first … end - 1."""

    def __init__(self, path: Path, first: int, end: int, lengths: Lengths, roots: Mapping[str, ImageRoot], filler: int):
        self.path, self.lengths, self.roots, self.filler = path, lengths, roots, filler
        try:
            self._file = pq.ParquetFile(path, page_checksum_verification=True)
            self._unchecked = pq.ParquetFile(path, metadata=self._file.metadata)
            missing = sorted(set(COLUMNS) - set(self._file.schema_arrow.names))
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read: {error}") from None
        if missing:
            raise DataError(f"{path} lacks the columns {missing}: it was written by a different version")
        groups = [self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups)]
        self._firsts = [first, *(first + np.cumsum(groups)).tolist()]
        if self._firsts[-1] != end:
            raise DataError(f"{path} does not hold the {end - first} samples that are listed in the manifest")
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
        where = f"{self.path}, row group {group}"
        try:
            table = self._file.read_row_group(group, columns=SMALL_COLUMNS)
            # Without page checksums, which take ten times as long: every image has its own checksum.
            images = self._unchecked.read_row_group(group, columns=["images"])
            table = table.append_column("images", images["images"])
            table.validate(full=True)  # page checksums do not cover page headers
        except (pa.ArrowException, OSError) as error:
            log.warning("%s is damaged: %s", where, error)
            return _RowGroup(first, None, f"{where}: {error}", self.lengths, self.roots, self.filler)
        index = table["index"].combine_chunks().to_numpy(zero_copy_only=False)
        if not np.array_equal(index, np.arange(first, end)):
            raise DataError(
                f"{where} does not hold samples {first} and following: files were swapped or edited; rebuild the shards"
            )
        self._check_lengths(first, table, where)
        return _RowGroup(first, table, None, self.lengths, self.roots, self.filler)

    def _check_lengths(self, first: int, table: pa.Table, where: str) -> None:
        """Raises DataError unless the samples have the lengths that the plan assumes; else packs could overflow."""
        planned = self.lengths.read(first, first + len(table))
        for what, column, expected in (("tokens", "input_ids", planned[0]), ("images", "image_sha256", planned[1])):
            counts = pc.fill_null(pc.list_value_length(table[column].combine_chunks()), 0)
            found = counts.to_numpy(zero_copy_only=False)
            wrong = np.flatnonzero(found != expected)
            if len(wrong):
                row = int(wrong[0])
                raise DataError(
                    f"{where}: sample {first + row} has {found[row]} {what}, but {self.lengths.path} lists "
                    f"{expected[row]}: the files come from different builds; rebuild the shards"
                )


class _RowGroup:
    """The samples of a row group, converted on demand. damage: why there is no table."""

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
            raise DataError(f"{name} has {len(input_ids)} tokens, but its loss mask has {len(loss_mask)} values")
        images: list[EmbeddedImage | ImageFile] = []
        checksums = values["image_sha256"].as_py() or ()
        encoded = values["images"].as_py() or ()
        if len(encoded) != len(checksums):
            return self._unreadable(index, f"{len(encoded)} images, but {len(checksums)} checksums")
        for image, sha256 in zip(encoded, checksums, strict=True):
            if image["bytes"] is not None:
                images.append(EmbeddedImage(image["path"], image["bytes"], sha256))
            elif dataset in self.roots:
                images.append(ImageFile(self.roots[dataset], image["path"], sha256))
            else:
                raise DataError(
                    f"{name} has an image reference but no bytes, and no image root is given for {dataset}: rebuild "
                    "the shards with `images: embed`"
                )
        return Example(index, dataset, values["example"].as_py(), input_ids, loss_mask, tuple(images))

    def _unreadable(self, index: int, problem: str) -> Example:
        tokens = int(self.lengths.read(index, index + 1)[0, 0])
        nothing, unlearned = np.full(tokens, self.filler, np.int32), np.zeros(tokens, bool)
        return Example(index, UNREADABLE, index, nothing, unlearned, (), problem)
