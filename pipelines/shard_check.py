"""One shard of a shards directory, checked row by row against the manifest. Used by verify.py."""

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

from pipelines.image_error import ImageRefError
from pipelines.images import decode
from pipelines.mixture import PERIOD, Mixture, MixtureError, mixture_of
from pipelines.remote import Files, RemoteError
from pipelines.schema import LENGTHS, SHARD
from pipelines.shards import add_sums
from pipelines.store import file_sha256

PARQUET_ERRORS = (pa.ArrowException, OSError)


@dataclass
class Found:
    """What was seen in a shard, and what is wrong with it."""

    faults: list[str] = field(default_factory=list)
    datasets: np.ndarray | None = None  # int (n,), places in the mixture's names; None where a row cannot be read
    lengths: pa.Table | None = None  # so is it
    sums: dict[str, Counter[str]] = field(default_factory=dict)
    pictures: int = 0


@dataclass
class ShardCheck:
    """Checks single files. Processes get a copy."""

    files: Files
    manifest: Mapping[str, Any]

    def __post_init__(self) -> None:
        made = self.manifest["mixture"]
        if made["period"] != PERIOD:
            raise MixtureError(f"a period of {made['period']}, for {PERIOD}")
        sizes = {name: facts["examples"] for name, facts in self.manifest["datasets"].items()}
        self.mixture: Mixture = mixture_of(made["quotas"], sizes, made["seed"])
        self.names = list(self.mixture.names)
        self.mode = self.manifest["images"]["mode"]
        self.image_token_id = self.manifest["image_token_id"]

    def manifest_faults(self) -> list[str]:
        """What the manifest contradicts itself in, and files that it does not name."""
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
                faults.append(f"{name}: not one of these shards, though whoever reads shard-*.parquet reads it")
        return faults

    def shard(self, number: int) -> Found:
        facts, found = self.manifest["shards"][number], Found()
        try:
            with self.files.local(facts["file"]) as path:
                wrong = wrong_bytes(path, facts)
                if wrong:
                    found.faults.append(f"{facts['file']}: {wrong}")
                self._read(path, facts, found)
        except FileNotFoundError:
            found.faults.append(f"{facts['file']}: missing")
        except (*PARQUET_ERRORS, RemoteError) as error:
            found.faults.append(f"{facts['file']}: cannot be read: {error}")
        return found

    def _read(self, path: Path, facts: Mapping[str, Any], found: Found) -> None:
        name = facts["file"]
        file = pq.ParquetFile(path, page_checksum_verification=True)
        if not file.schema_arrow.remove_metadata().equals(SHARD):
            found.faults.append(f"{name}: other columns than shards of this format have")
            return
        row, tables, whole = 0, [], True
        good: set[str] = set()  # sums of pictures that decode: many samples show the same
        for group in range(file.num_row_groups):
            end = row + file.metadata.row_group(group).num_rows
            try:
                table = _read_group(path, file, group, f"{name}: rows {row} to {end - 1}", found.faults)
            except PARQUET_ERRORS as error:
                found.faults.append(f"{name}: rows {row} to {end - 1}: cannot be read: {error}")
                row, whole = end, False
                continue
            wrong = [*self._order(table, facts["first"] + row), *self._counts(table)]
            wrong += self._pictures(table, good, found)
            found.faults += [f"{name}: row {row + place}: {what}" for place, what in sorted(wrong)]
            add_sums(found.sums, table)
            tables.append(table.select(["dataset", *LENGTHS.names]))
            row = end
        if row != facts["num_samples"]:
            found.faults.append(f"{name}: {row:,} rows, the manifest says {facts['num_samples']:,}")
        if whole and tables:
            table = pa.concat_tables(tables)
            numbers = pc.fill_null(pc.index_in(table["dataset"], value_set=pa.array(self.names)), -1)
            found.datasets, found.lengths = numbers.to_numpy(), table.select(LENGTHS.names)

    def _order(self, table: pa.Table, first: int) -> Iterator[tuple[int, str]]:
        """Rows that are not the samples that stand at their place in the order of the mixture."""
        index, there = np.arange(first, first + len(table)), table["index"].to_numpy()
        moved = there - index
        for row in np.flatnonzero((moved != 0) & (moved != np.append(0, moved[:-1]))).tolist():
            same = np.flatnonzero(moved[row:] != moved[row])
            count = int(same[0]) if len(same) else len(table) - row
            yield row, f"{count:,} samples from {there[row]} on stand where those from {index[row]} on should"
        number, example = self.mixture.locate(index)
        right_dataset = pc.equal(table["dataset"], pa.array(np.array(self.names, dtype=object)[number], pa.string()))
        right = right_dataset.to_numpy() & (table["example"].to_numpy() == example)
        for row in np.flatnonzero(~right & (moved == 0)).tolist():
            found = f"{table['dataset'][row].as_py()} example {table['example'][row].as_py()}"
            yield row, f"{found}, the order has {self.names[number[row]]} example {example[row]} here"

    def _counts(self, table: pa.Table) -> Iterator[tuple[int, str]]:
        """Rows whose lists and counts do not agree."""

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
        for what, seen, said in pairs:
            for row in np.flatnonzero(seen != counts[said]).tolist():
                yield row, f"{seen[row]} {what}, but {said} is {counts[said][row]}"

    def _pictures(self, table: pa.Table, good: set[str], found: Found) -> Iterator[tuple[int, str]]:
        """Rows with pictures that are not there as they should be."""
        # A row at a time: the bytes of a group may be many.
        images, sums = table["images"], table["image_sha256"]
        for row in range(len(table)):
            own = zip(images[row].as_py() or (), sums[row].as_py() or (), strict=False)
            for number, (image, sha256) in enumerate(own):
                found.pictures += 1
                wrong = self._wrong_picture(image["bytes"], sha256, good)
                if wrong:
                    yield row, f"picture {number} ({image['path']}): {wrong}"

    def _wrong_picture(self, data: bytes | None, sha256: str | None, good: set[str]) -> str | None:
        if self.mode != "embed":
            if data is not None:
                return f"bytes, where the manifest says images: {self.mode}"
            return "no sum" if sha256 is None and self.mode == "reference" else None
        if data is None:
            return "no bytes"
        digest = hashlib.sha256(data).hexdigest()
        if digest != sha256:
            return f"its sum is {digest[:8]}…, image_sha256 says {(sha256 or 'nothing')[:8]}…"
        if digest not in good:
            try:
                decode(data)
            except ImageRefError as error:
                return f"does not decode: {error.detail}"
            good.add(digest)
        return None


def wrong_bytes(path: Path, facts: Mapping[str, Any]) -> str | None:
    size = path.stat().st_size
    if size != facts["num_bytes"]:
        return f"{size:,} bytes, the manifest says {facts['num_bytes']:,}"
    digest = file_sha256(path)
    if digest != facts["sha256"]:
        return f"its sum is {digest[:8]}…, the manifest says {facts['sha256'][:8]}…"
    return None


def _read_group(path: Path, file: pq.ParquetFile, group: int, rows: str, faults: list[str]) -> pa.Table:
    """A row group; if its pages are not those that were written, that is a fault, and the rows are looked at as they
    are, since they may show which picture it is. Raises what pyarrow raises."""
    try:
        return file.read_row_group(group)
    except OSError as error:
        table = pq.ParquetFile(path).read_row_group(group)
        faults.append(f"{rows}: {error}")
        return table
