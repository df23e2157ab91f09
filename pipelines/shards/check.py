"""Checks one shard of a shards directory row by row against the manifest. Used by verify.py."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.core.errors import ImageRefError
from pipelines.core.files import file_sha256
from pipelines.images.decode import decode
from pipelines.mixture.order import PERIOD, Mixture, MixtureError, mixture_from_quotas
from pipelines.schema import LENGTHS, SHARD
from pipelines.shards.remote import RemoteError, ShardFiles
from pipelines.shards.writer import add_sums

PARQUET_ERRORS = (pa.ArrowException, OSError)


@dataclass
class ShardReport:
    """The result of checking a shard: its contents and its faults."""

    faults: list[str] = field(default_factory=list)
    datasets: np.ndarray | None = None  # int (n,), indices into the mixture's names; None if a row cannot be read
    lengths: pa.Table | None = None  # schema LENGTHS; None if a row cannot be read
    sums: dict[str, Counter[str]] = field(default_factory=dict)
    num_images: int = 0


@dataclass
class ShardCheck:
    """Checks the manifest and single shards. Worker processes get a pickled copy. Raises KeyError, TypeError or
    MixtureError if the manifest is invalid."""

    files: ShardFiles
    manifest: Mapping[str, Any]

    def __post_init__(self) -> None:
        made = self.manifest["mixture"]
        if made["period"] != PERIOD:
            raise MixtureError(f"the period is {made['period']} instead of {PERIOD}")
        sizes = {name: facts["examples"] for name, facts in self.manifest["datasets"].items()}
        self.mixture: Mixture = mixture_from_quotas(made["quotas"], sizes, made["seed"])
        self.names = list(self.mixture.names)
        self.mode = self.manifest["images"]["mode"]
        self.image_token_id = self.manifest["image_token_id"]

    def manifest_faults(self) -> list[str]:
        """Returns contradictions within the manifest, and shard files that it does not list."""
        faults, at = [], 0
        for facts in self.manifest["shards"]:
            if facts["first"] != at:
                first = f"{facts['file']} begins at sample {facts['first']:,}"
                faults.append(f"manifest.json: {first}, but {at:,} comes next")
            at = facts["first"] + facts["num_samples"]
        if at != self.manifest["num_samples"]:
            faults.append(f"manifest.json: its shards end at sample {at:,} of {self.manifest['num_samples']:,}")
        named = {facts["file"] for facts in self.manifest["shards"]}
        for name in self.files.names():
            if name.startswith("shard-") and name.endswith(".parquet") and name not in named:
                faults.append(f"{name}: not listed in the manifest, but readers of shard-*.parquet would include it")
        return faults

    def shard(self, number: int) -> ShardReport:
        """Checks the shard with this index."""
        facts, found = self.manifest["shards"][number], ShardReport()
        try:
            with self.files.local(facts["file"]) as path:
                wrong = file_fault(path, facts)
                if wrong:
                    found.faults.append(f"{facts['file']}: {wrong}")
                self._read(path, facts, found)
        except FileNotFoundError:
            found.faults.append(f"{facts['file']}: missing")
        except (*PARQUET_ERRORS, RemoteError) as error:
            found.faults.append(f"{facts['file']}: cannot be read: {error}")
        return found

    def _read(self, path: Path, facts: Mapping[str, Any], found: ShardReport) -> None:
        name = facts["file"]
        file = pq.ParquetFile(path, page_checksum_verification=True)
        if not file.schema_arrow.remove_metadata().equals(SHARD):
            found.faults.append(f"{name}: does not have the schema of shards of this format")
            return
        row, tables, complete = 0, [], True
        good: set[str] = set()  # checksums of images that decode, because many samples share an image
        for group in range(file.num_row_groups):
            end = row + file.metadata.row_group(group).num_rows
            try:
                table = _read_group(path, file, group, f"{name}: rows {row} to {end - 1}", found.faults)
            except PARQUET_ERRORS as error:
                found.faults.append(f"{name}: rows {row} to {end - 1}: cannot be read: {error}")
                row, complete = end, False
                continue
            wrong = [*self._order(table, facts["first"] + row), *self._counts(table)]
            wrong += self._images(table, good, found)
            found.faults += [f"{name}: row {row + offset}: {what}" for offset, what in sorted(wrong)]
            add_sums(found.sums, table)
            tables.append(table.select(["dataset", *LENGTHS.names]))
            row = end
        if row != facts["num_samples"]:
            found.faults.append(f"{name}: {row:,} rows, but the manifest says {facts['num_samples']:,}")
        if complete and tables:
            table = pa.concat_tables(tables)
            indices = pc.fill_null(pc.index_in(table["dataset"], value_set=pa.array(self.names)), -1)
            found.datasets, found.lengths = indices.to_numpy(), table.select(LENGTHS.names)

    def _order(self, table: pa.Table, first: int) -> Iterator[tuple[int, str]]:
        """Yields (row, fault) for rows that are not the sample that the mixture has at their index."""
        index, there = np.arange(first, first + len(table)), table["index"].to_numpy()
        moved = there - index
        for row in np.flatnonzero((moved != 0) & (moved != np.append(0, moved[:-1]))).tolist():
            same = np.flatnonzero(moved[row:] != moved[row])
            count = int(same[0]) if len(same) else len(table) - row
            yield row, f"{count:,} samples starting at index {there[row]}, but index {index[row]} is expected here"
        dataset, example = self.mixture.locate(index)
        right_dataset = pc.equal(table["dataset"], pa.array(np.array(self.names, dtype=object)[dataset], pa.string()))
        right = right_dataset.to_numpy() & (table["example"].to_numpy() == example)
        for row in np.flatnonzero(~right & (moved == 0)).tolist():
            found = f"{table['dataset'][row].as_py()} example {table['example'][row].as_py()}"
            yield row, f"{found}, but the order has {self.names[dataset[row]]} example {example[row]} here"

    def _counts(self, table: pa.Table) -> Iterator[tuple[int, str]]:
        """Yields (row, fault) for rows whose lists do not match their counts."""

        def lengths(name: str) -> np.ndarray:
            return pc.fill_null(pc.list_value_length(table[name]), 0).to_numpy()

        def trues(name: str, values: np.ndarray) -> np.ndarray:
            ends = np.cumsum(lengths(name))
            running = np.append(0, np.cumsum(values))
            return running[ends] - running[ends - lengths(name)]

        ids = pc.list_flatten(table["input_ids"]).to_numpy()
        mask = pc.fill_null(pc.list_flatten(table["loss_mask"]), False).to_numpy()
        counts = {
            name: pc.fill_null(table[name], -1).to_numpy() for name in ("num_tokens", "num_images", "num_supervised")
        }
        pairs = [
            ("input_ids", lengths("input_ids"), "num_tokens"),
            ("loss_mask", lengths("loss_mask"), "num_tokens"),
            ("supervised tokens", trues("loss_mask", mask), "num_supervised"),
            ("images", lengths("images"), "num_images"),
            ("image_sha256", lengths("image_sha256"), "num_images"),
            ("image tokens", trues("input_ids", ids == self.image_token_id), "num_images"),
        ]
        for what, actual, column in pairs:
            for row in np.flatnonzero(actual != counts[column]).tolist():
                yield row, f"{actual[row]} {what}, but {column} is {counts[column][row]}"

    def _images(self, table: pa.Table, good: set[str], found: ShardReport) -> Iterator[tuple[int, str]]:
        """Yields (row, fault) for images that are missing, differ from their checksum or do not decode."""
        # One row at a time, because the image bytes of a row group can be large.
        images, checksums = table["images"], table["image_sha256"]
        for row in range(len(table)):
            own = zip(images[row].as_py() or (), checksums[row].as_py() or (), strict=False)
            for index, (image, sha256) in enumerate(own):
                found.num_images += 1
                wrong = self._image_fault(image["bytes"], sha256, good)
                if wrong:
                    yield row, f"image {index} ({image['path']}): {wrong}"

    def _image_fault(self, data: bytes | None, sha256: str | None, good: set[str]) -> str | None:
        if self.mode != "embed":
            if data is not None:
                return f"has bytes, but the image mode of the manifest is {self.mode}"
            return "no checksum" if sha256 is None and self.mode == "reference" else None
        if data is None:
            return "no bytes"
        digest = hashlib.sha256(data).hexdigest()
        if digest != sha256:
            return f"its checksum is {digest[:8]}…, but image_sha256 is {(sha256 or 'null')[:8]}…"
        if digest not in good:
            try:
                decode(data)
            except ImageRefError as error:
                return f"does not decode: {error.detail}"
            good.add(digest)
        return None


def file_fault(path: Path, facts: Mapping[str, Any]) -> str | None:
    """Returns a fault if the file's size or checksum differs from the manifest, otherwise None."""
    size = path.stat().st_size
    if size != facts["num_bytes"]:
        return f"{size:,} bytes, but the manifest says {facts['num_bytes']:,}"
    digest = file_sha256(path)
    if digest != facts["sha256"]:
        return f"its checksum is {digest[:8]}…, but the manifest says {facts['sha256'][:8]}…"
    return None


def _read_group(path: Path, file: pq.ParquetFile, group: int, rows: str, faults: list[str]) -> pa.Table:
    """Reads a row group. If a page checksum is wrong, records a fault and reads the rows without verification, as they
    may show which image is damaged. Raises what pyarrow raises."""
    try:
        return file.read_row_group(group)
    except OSError as error:
        table = pq.ParquetFile(path).read_row_group(group)
        faults.append(f"{rows}: {error}")
        return table
