"""Plans which samples share a sequence, from the stored lengths only, so that packing can change without new shards.

Packs are formed independently within windows of W consecutive samples of the order, so at the end of a window the
mixture's quotas are as exact as without packing. Within a window, a dataset with share p deviates by at most
W·p·(1 − p) + 2 samples, which happens if all its samples come first or last; packs are ordered by a hash, so the actual
deviation is much smaller. Only the index of each window's first pack is held in memory; a window is packed again
whenever its packs are requested.
"""

import io
import logging
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from pipelines.core.files import file_sha256, write_atomic
from pipelines.core.hashing import mix64
from pipelines.core.store import fingerprint
from pipelines.packing.bin_packing import NO_LIMIT, pack_window
from pipelines.schema import LENGTHS

log = logging.getLogger("honeybee.training")
VERSION = 1  # raise it when the same lengths and settings give different packs
_PLANNED_TOGETHER = 1 << 20  # samples per task of the thread pool


class PackingError(ValueError):
    """Raised for samples that cannot be packed with the given settings, and for unreadable files."""


class Packing(BaseModel):
    """The settings of packing. max_tokens: L, the sequence length, including visual tokens. window: W, the number of
    samples that a reader holds in memory. max_images: maximum per sequence; None means no limit."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    max_tokens: Annotated[int, Field(gt=0, lt=1 << 24)]
    """Length of a sequence in positions, visual tokens included."""

    window: Annotated[int, Field(gt=0, lt=1 << 24)] = 1024
    """Number of consecutive samples that are packed together."""

    max_images: Annotated[int, Field(gt=0)] | None = None
    """Maximum number of images of a sequence; unlimited if unset."""


class Lengths:
    """The lengths of all samples, in order: a Parquet file with the columns `num_tokens` (an image counts as one token)
    and `num_images`. Raises PackingError if the file cannot be read or has different columns."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self._file = pq.ParquetFile(path)
        except (pa.ArrowException, OSError) as error:
            raise PackingError(f"{path} cannot be read: {error}; build the shards again") from None
        if not self._file.schema_arrow.equals(LENGTHS):
            raise PackingError(f"{path} does not have the schema of a lengths file: build the shards again")
        groups = [self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups)]
        self._firsts = np.concatenate([[0], np.cumsum(groups, dtype=np.int64)])
        self._open: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return int(self._firsts[-1])

    @property
    def fingerprint(self) -> str:
        return file_sha256(self.path)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns the tokens and images of the samples start … stop - 1: int32 (2, n)."""
        pieces = [np.empty((2, 0), np.int32)]
        while start < stop:
            group = int(np.searchsorted(self._firsts, start, side="right")) - 1
            if self._open is None or self._open[0] != group:
                table = self._file.read_row_group(group, columns=["num_tokens", "num_images"])
                self._open = group, np.stack([column.to_numpy().astype(np.int32) for column in table.columns])
            first, end = int(self._firsts[group]), min(int(self._firsts[group + 1]), stop)
            pieces.append(self._open[1][:, start - first : end - first])
            start = end
        return np.concatenate(pieces, axis=1)


@dataclass(frozen=True)
class Pack:
    """A set of samples that share a sequence."""

    samples: np.ndarray  # int64 (n,): indices in the order, ascending
    tokens: int  # positions of the sequence that the samples fill
    window: int  # first sample of the window; later packs contain no samples before it


class PackingPlan:
    """All packs of a stage. If `packing` is None, every sample is its own sequence.

    starts: int64 (windows + 1,), index of the first pack of each window. used: fraction of the packs' positions that
    samples fill.
    """

    def __init__(
        self,
        lengths: Lengths,
        packing: Packing | None,
        image_tokens: int,
        starts: np.ndarray | None = None,
        used: float = 1.0,
    ):
        self.lengths, self.packing, self.image_tokens = lengths, packing, image_tokens
        self.starts, self.used = starts, used
        self.window = packing.window if packing else 1
        self._planned: tuple[int, list[Pack]] | None = None

    @property
    def num_packs(self) -> int:
        return len(self.lengths) if self.starts is None else int(self.starts[-1])

    @property
    def fingerprint(self) -> str:
        settings = self.packing and self.packing.model_dump()
        return fingerprint([VERSION, self.lengths.fingerprint, self.image_tokens, settings])

    def packs(self, first: int, stop: int) -> list[Pack]:
        """Returns the packs first … stop - 1. Cheapest if called with ascending `first`, since one window is cached.
        Raises IndexError for a range outside the plan."""
        if not 0 <= first <= stop <= self.num_packs:
            raise IndexError(f"packs {first} to {stop - 1} do not exist: the plan has {self.num_packs}")
        if self.starts is None:
            tokens = _positions(self.lengths.read(first, stop), self.image_tokens)
            return [Pack(np.array([i]), int(t), i) for i, t in zip(range(first, stop), tokens, strict=True)]
        got: list[Pack] = []
        while first < stop:
            window = int(np.searchsorted(self.starts, first, side="right")) - 1
            begin = int(self.starts[window])
            got += self._window(window)[first - begin : stop - begin]
            first = min(stop, int(self.starts[window + 1]))
        return got

    def _window(self, window: int) -> list[Pack]:
        if self._planned is None or self._planned[0] != window:
            self._planned = window, self._make_window(window)
        return self._planned[1]

    def _make_window(self, window: int) -> list[Pack]:
        assert self.packing is not None
        begin = window * self.window
        columns = self.lengths.read(begin, min(begin + self.window, len(self.lengths)))
        positions = _positions(columns, self.image_tokens)
        pack_of, count = _pack(positions, columns[1], self.packing)
        members = np.split(np.argsort(pack_of, kind="stable"), np.cumsum(np.bincount(pack_of, minlength=count))[:-1])
        packs = [Pack(begin + own.astype(np.int64), int(positions[own].sum()), begin) for own in members]
        # The longest samples were packed first, so the packs are shuffled by a hash.
        order = np.argsort(mix64(np.array([pack.samples[0] for pack in packs]), seed=0), kind="stable")
        return [packs[i] for i in order]


def cached_plan(
    directory: Path, lengths: Lengths, packing: Packing | None, image_tokens: int, threads: int = 1, keep: bool = True
) -> PackingPlan:
    """Like make_plan, but loads the plan if an earlier run has saved it in `directory`, so that resuming is fast.

    keep: whether to save a new plan. Raises PackingError as make_plan does."""
    plan = PackingPlan(lengths, packing, image_tokens)
    path = directory / f"plan-{plan.fingerprint}.npz"
    if packing is not None and path.is_file():
        try:
            with np.load(path, allow_pickle=False) as kept:
                return PackingPlan(lengths, packing, image_tokens, kept["starts"], float(kept["used"]))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            log.warning("%s is damaged: %s: the plan is rebuilt", path, error)
    plan = make_plan(lengths, packing, image_tokens, threads)
    if plan.starts is not None and keep:
        directory.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        np.savez(content, starts=plan.starts, used=plan.used)
        write_atomic(path, content.getvalue())
    return plan


def make_plan(lengths: Lengths, packing: Packing | None, image_tokens: int, threads: int = 1) -> PackingPlan:
    """Plans all packs, with `threads` threads. Raises PackingError naming a sample that exceeds a limit."""
    if packing is None:
        return PackingPlan(lengths, None, image_tokens)
    windows_together = max(1, _PLANNED_TOGETHER // packing.window)
    step = windows_together * packing.window

    def count(begin: int, columns: np.ndarray) -> tuple[list[int], int]:
        positions = _positions(columns, image_tokens)
        _check(begin, positions, columns[1], packing)
        ends = range(0, len(positions), packing.window)
        counts = [
            _pack(positions[a : a + packing.window], columns[1, a : a + packing.window], packing)[1] for a in ends
        ]
        return counts, int(positions.sum())

    counted: list[tuple[list[int], int]] = []
    with ThreadPoolExecutor(threads) as pool:
        waiting = []
        for begin in range(0, len(lengths), step):
            waiting.append(pool.submit(count, begin, lengths.read(begin, min(begin + step, len(lengths)))))
            if len(waiting) > threads:  # limits how far reading runs ahead
                counted.append(waiting.pop(0).result())
        counted += [future.result() for future in waiting]
    counts = [count for each, _ in counted for count in each]
    starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    used = sum(positions for _, positions in counted) / max(1, int(starts[-1]) * packing.max_tokens)
    return PackingPlan(lengths, packing, image_tokens, starts, used)


def _positions(columns: np.ndarray, image_tokens: int) -> np.ndarray:
    """Returns the positions that each sample fills: int32 (2, n) → int32 (n,)."""
    return columns[0] + columns[1] * np.int32(image_tokens - 1)


def _pack(positions: np.ndarray, images: np.ndarray, packing: Packing) -> tuple[np.ndarray, int]:
    """Returns the pack of each sample of one window, int32 (n,), and the number of packs."""
    total = int(positions.sum())
    most = min(packing.max_tokens, total)  # a capacity beyond the total would only cost memory
    most_images = packing.max_images or NO_LIMIT
    fewest = max(-(-total // most), -(-int(images.sum()) // most_images))
    out = np.empty(len(positions), np.int32)
    count = pack_window(positions, images, most, most_images, fewest, out)
    if count > fewest:  # the last packs are nearly empty, so pack again into this number of equally full packs
        again = np.empty_like(out)
        if pack_window(positions, images, most, most_images, count, again) == count:
            return again, count
    return out, count


def _check(begin: int, positions: np.ndarray, images: np.ndarray, packing: Packing) -> None:
    wrong = np.flatnonzero((positions < 1) | (images < 0))
    if len(wrong):
        k = int(wrong[0])
        raise PackingError(
            f"sample {begin + k} has {positions[k]:,} positions and {images[k]:,} images according to the lengths "
            "file, which is impossible: build the shards again"
        )
    limits = [("positions", positions, packing.max_tokens, "max_tokens")]
    if packing.max_images:
        limits.append(("images", images, packing.max_images, "max_images"))
    for what, values, most, key in limits:
        if len(values) and values.max() > most:
            k = int(values.argmax())
            raise PackingError(
                f"sample {begin + k} has {values[k]:,} {what}, but packing.{key} is {most:,}: raise it, or lower the "
                "limits on examples (data.max_text_tokens, data.max_images)"
            )
