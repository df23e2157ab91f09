"""`honeybee verify`: everything that a shards directory promises, checked on its files alone, wherever they were
copied to."""

import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.mixture import PERIOD, MixtureError
from pipelines.remote import Files, RemoteError
from pipelines.schema import LENGTHS
from pipelines.shard_check import PARQUET_ERRORS, Found, ShardCheck, wrong_bytes
from pipelines.shard_error import ShardError
from pipelines.shards import check_format

_SUMS = ("num_turns", "num_images", "num_tokens", "num_supervised")


def verify(where: str, log: Callable[[str], None] = print, processes: int = 1) -> list[str]:
    """Checks the shards in a directory or at a URL. Tells `log` what was done, shard by shard, and every fault, which
    it returns: file and row, what was found, what should be there. Raises ShardError where there is no manifest of
    this version, RemoteError for a URL that cannot be read."""
    files = Files(where)
    manifest = files.manifest()
    check_format(manifest, where)
    try:
        checker = ShardCheck(files, manifest)
    except (KeyError, TypeError, MixtureError) as error:
        raise ShardError(f"{where}/manifest.json lacks or misstates {error}: copy it anew, or build again") from None
    faults = checker.manifest_faults()
    for fault in faults:
        log(f"  {fault}")
    shards, whole = manifest["shards"], _Whole(manifest, checker.names)
    for number, found in _each(checker, range(len(shards)), processes):
        found.faults += whole.add(shards[number], found)
        count = len(found.faults)
        state = "fine" if not count else f"{count:,} fault{'s' if count > 1 else ''}"
        size = f"{shards[number]['num_samples']:,} samples, {found.pictures:,} pictures"
        log(f"{number + 1} of {len(shards)} {shards[number]['file']}: {size}: {state}")
        for fault in found.faults:
            log(f"  {fault}")
        faults += found.faults
    last = [*whole.faults(), *_length_faults(files, manifest, whole.lengths)]
    for fault in last:
        log(f"  {fault}")
    return faults + last


def _each(checker: ShardCheck, numbers: range, processes: int) -> Iterator[tuple[int, Found]]:
    if processes == 1 or len(numbers) == 1:
        yield from ((number, checker.shard(number)) for number in numbers)
        return
    # Fresh processes: those that are forked may inherit locks of Arrow's threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(numbers)), mp_context=context) as pool:
        yield from zip(numbers, pool.map(checker.shard, numbers), strict=True)


class _Whole:
    """What only all shards together show: exact quotas of every prefix, and the sums of the manifest."""

    def __init__(self, manifest: Mapping[str, Any], names: list[str]):
        self._manifest, self._names = manifest, names
        self._quotas = np.array([manifest["mixture"]["quotas"][name] for name in names])
        self._given = np.zeros(len(names), np.int64)
        self._at: int | None = 0  # samples counted; None: unknown, after a shard that could not be read
        self._sums: dict[str, Counter[str]] = {}
        self._all_read = True
        self.lengths: list[pa.Table | None] = []

    def add(self, facts: Mapping[str, Any], found: Found) -> list[str]:
        """Faults of a shard, the next one."""
        self.lengths.append(found.lengths)
        if found.datasets is None or found.lengths is None:
            self._at, self._all_read = None, False
            return []
        faults = []
        for name in ("num_tokens", "num_supervised"):
            total = sum(each[name] for each in found.sums.values())
            if total != facts[name]:
                faults.append(f"{facts['file']}: {name} sums to {total:,}, the manifest says {facts[name]:,}")
        for name, values in found.sums.items():
            self._sums.setdefault(name, Counter()).update(values)
        if self._at is not None:
            faults += [f"{facts['file']}: row {row}: {what}" for row, what in self._quota_faults(found.datasets)]
            self._at += len(found.datasets)
        return faults

    def _quota_faults(self, datasets: np.ndarray) -> Iterator[tuple[int, str]]:
        assert self._at is not None
        places = self._at + np.arange(1, len(datasets) + 1)
        for number, name in enumerate(self._names):
            given = self._given[number] + np.cumsum(datasets == number)
            off = given * PERIOD - places * self._quotas[number]
            bad = np.flatnonzero(np.abs(off) >= PERIOD)
            if len(bad):  # one line tells it: what follows is off as well
                row = int(bad[0])
                owed = places[row] * self._quotas[number] / PERIOD
                yield row, f"the first {places[row]:,} samples hold {given[row]:,} of {name}, its share is {owed:,.2f}"
            self._given[number] = given[-1] if len(given) else self._given[number]

    def faults(self) -> list[str]:
        if not self._all_read:
            return []
        faults = []
        for name, facts in self._manifest["datasets"].items():
            for what in ("samples", *_SUMS):
                seen = self._sums.get(name, Counter())[what]
                if seen != facts[what]:
                    faults.append(f"manifest.json: {name}: {facts[what]:,} {what}, but {seen:,} in the shards")
        return faults


def _length_faults(files: Files, manifest: Mapping[str, Any], seen: list[pa.Table | None]) -> list[str]:
    """seen: the lengths of each shard, None where it could not be read."""
    facts = manifest["lengths"]
    try:
        with files.local(facts["file"]) as path:
            wrong = wrong_bytes(path, facts)
            table = pq.read_table(path)
    except FileNotFoundError:
        return [f"{facts['file']}: missing"]
    except (*PARQUET_ERRORS, RemoteError) as error:
        return [f"{facts['file']}: cannot be read: {error}"]
    faults = [f"{facts['file']}: {wrong}"] if wrong else []
    if not table.schema.equals(LENGTHS) or len(table) != manifest["num_samples"]:
        return [*faults, f"{facts['file']}: {len(table):,} rows, or other columns than lengths have"]
    for shard, own in zip(manifest["shards"], seen, strict=True):
        here = table.slice(shard["first"], shard["num_samples"])
        if own is None or len(own) != len(here):
            continue
        for name in LENGTHS.names:
            other = np.flatnonzero(own[name].to_numpy() != here[name].to_numpy())
            faults += [
                f"{facts['file']}: row {shard['first'] + row}: {name} {here[name][row]}, {own[name][row]} in "
                f"{shard['file']}"
                for row in other.tolist()
            ]
    return faults
