"""Implements `honeybee verify`: checks every guarantee of a shards directory, using only its files, so that a copy in
any location can be checked."""

import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.core.errors import ShardError
from pipelines.core.integrity import CONTENTS
from pipelines.mixture.order import PERIOD, MixtureError
from pipelines.schema import LENGTHS
from pipelines.shards.check import PARQUET_ERRORS, ShardCheck, ShardReport, file_fault
from pipelines.shards.manifest import check_format
from pipelines.shards.remote import RemoteError, ShardFiles

_SUMS = ("num_turns", "num_images", "num_tokens", "num_supervised")


def verify(where: str, log: Callable[[str], None] = print, processes: int = 1) -> list[str]:
    """Checks the shards in a directory or at a URL. Logs the progress shard by shard, and returns and logs all faults,
    each with file, row, found and expected value. Raises ShardError if there is no valid manifest of this format,
    RemoteError if a URL cannot be read."""
    files = ShardFiles(where)
    manifest = files.manifest()
    check_format(manifest, where)
    try:
        checker = ShardCheck(files, manifest)
    except (KeyError, TypeError, MixtureError) as error:
        raise ShardError(
            f"{where}/manifest.json is incomplete or invalid ({error}): copy it again, or build again"
        ) from None
    faults = checker.manifest_faults()
    for fault in faults:
        log(f"  {fault}")
    shards, totals = manifest["shards"], _Totals(manifest, checker.names)
    for number, found in _each(checker, range(len(shards)), processes):
        found.faults += totals.add(shards[number], found)
        count = len(found.faults)
        state = "OK" if not count else f"{count:,} fault{'s' if count > 1 else ''}"
        size = f"{shards[number]['num_samples']:,} samples, {found.num_images:,} images"
        log(f"{number + 1} of {len(shards)} {shards[number]['file']}: {size}: {state}")
        for fault in found.faults:
            log(f"  {fault}")
        faults += found.faults
    last = [*totals.faults(), *_length_faults(files, manifest, totals.lengths), *_other_faults(files, manifest)]
    for fault in last:
        log(f"  {fault}")
    return faults + last


def _each(checker: ShardCheck, numbers: range, processes: int) -> Iterator[tuple[int, ShardReport]]:
    if processes == 1 or len(numbers) == 1:
        yield from ((number, checker.shard(number)) for number in numbers)
        return
    # Spawned, because forked processes may inherit locks held by Arrow's threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(numbers)), mp_context=context) as pool:
        yield from zip(numbers, pool.map(checker.shard, numbers), strict=True)


class _Totals:
    """Checks across all shards: the exact quotas of every prefix, and the manifest's totals."""

    def __init__(self, manifest: Mapping[str, Any], names: list[str]):
        self._manifest, self._names = manifest, names
        self._quotas = np.array([manifest["mixture"]["quotas"][name] for name in names])
        self._given = np.zeros(len(names), np.int64)
        self._at: int | None = 0  # number of samples so far; None after a shard that could not be read
        self._sums: dict[str, Counter[str]] = {}
        self._all_read = True
        self.lengths: list[pa.Table | None] = []

    def add(self, facts: Mapping[str, Any], found: ShardReport) -> list[str]:
        """Adds the next shard and returns its faults."""
        self.lengths.append(found.lengths)
        if found.datasets is None or found.lengths is None:
            self._at, self._all_read = None, False
            return []
        faults = []
        for name in ("num_tokens", "num_supervised"):
            total = sum(each[name] for each in found.sums.values())
            if total != facts[name]:
                faults.append(f"{facts['file']}: {name} sums to {total:,}, but the manifest says {facts[name]:,}")
        for name, values in found.sums.items():
            self._sums.setdefault(name, Counter()).update(values)
        if self._at is not None:
            faults += [f"{facts['file']}: row {row}: {what}" for row, what in self._quota_faults(found.datasets)]
            self._at += len(found.datasets)
        return faults

    def _quota_faults(self, datasets: np.ndarray) -> Iterator[tuple[int, str]]:
        assert self._at is not None
        prefixes = self._at + np.arange(1, len(datasets) + 1)
        for number, name in enumerate(self._names):
            given = self._given[number] + np.cumsum(datasets == number)
            off = given * PERIOD - prefixes * self._quotas[number]
            bad = np.flatnonzero(np.abs(off) >= PERIOD)
            if len(bad):  # only the first is reported, because later prefixes are usually wrong as well
                row = int(bad[0])
                owed = prefixes[row] * self._quotas[number] / PERIOD
                found = f"the first {prefixes[row]:,} samples contain {given[row]:,} of {name}"
                yield row, f"{found}, but its share is {owed:,.2f}"
            self._given[number] = given[-1] if len(given) else self._given[number]

    def faults(self) -> list[str]:
        """Returns totals of the manifest that differ from the shards; none if a shard could not be read."""
        if not self._all_read:
            return []
        faults = []
        for name, facts in self._manifest["datasets"].items():
            for what in ("samples", *_SUMS):
                seen = self._sums.get(name, Counter())[what]
                if seen != facts[what]:
                    faults.append(f"manifest.json: {name}: {facts[what]:,} {what}, but the shards have {seen:,}")
        return faults


def _other_faults(files: ShardFiles, manifest: Mapping[str, Any]) -> Iterator[str]:
    """Yields faults of the files that hold no samples, such as the dataset card."""
    checked = {manifest["lengths"]["file"], *(shard["file"] for shard in manifest["shards"])}
    for name, (size, sha256) in manifest[CONTENTS].items():
        if name not in checked:
            try:
                with files.local(name) as path:
                    wrong = file_fault(path, {"num_bytes": size, "sha256": sha256})
            except FileNotFoundError:
                wrong = "missing"
            except (OSError, RemoteError) as error:
                wrong = f"cannot be read: {error}"
            if wrong:
                yield f"{name}: {wrong}"


def _length_faults(files: ShardFiles, manifest: Mapping[str, Any], seen: list[pa.Table | None]) -> list[str]:
    """Returns faults of the lengths file. seen: the lengths of each shard, None if it could not be read."""
    facts = manifest["lengths"]
    try:
        with files.local(facts["file"]) as path:
            wrong = file_fault(path, facts)
            table = pq.read_table(path)
    except FileNotFoundError:
        return [f"{facts['file']}: missing"]
    except (*PARQUET_ERRORS, RemoteError) as error:
        return [f"{facts['file']}: cannot be read: {error}"]
    faults = [f"{facts['file']}: {wrong}"] if wrong else []
    if not table.schema.equals(LENGTHS) or len(table) != manifest["num_samples"]:
        expected = f"expected {manifest['num_samples']:,} rows with the schema of a lengths file"
        return [*faults, f"{facts['file']}: {expected}, found {len(table):,} rows of {table.column_names}"]
    for shard, own in zip(manifest["shards"], seen, strict=True):
        here = table.slice(shard["first"], shard["num_samples"])
        if own is None or len(own) != len(here):
            continue
        for name in LENGTHS.names:
            other = np.flatnonzero(own[name].to_numpy() != here[name].to_numpy())
            faults += [
                f"{facts['file']}: row {shard['first'] + row}: {name} is {here[name][row]}, but {own[name][row]} in "
                f"{shard['file']}"
                for row in other.tolist()
            ]
    return faults
