"""Decides which images an example contains and where: at its head, or at each `<image>` placeholder of a question.

Only this module handles the annotation column `more_images`, which holds the images of a row after its first. Job 1
partitions the images table by the hash of a row's first image, so the others are looked up in the full table on disk.
"""

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.core.arrow_files import open_batches
from pipelines.core.ragged import flat_indices, offsets_of, segment_sums
from pipelines.examples.grouping import Grouping
from pipelines.examples.instructify import Turns
from pipelines.schema import IMAGE_TOKEN, IMAGES

MAX_IMAGES = 8  # per example, unless a recipe sets another limit


@dataclass(frozen=True)
class TurnImages:
    """The images of a partition's turns. The images of a conversation are one slice of `shown`, which starts at `start`
    for each of its turns. `before` is the number of its images that precede the turn, and `inline` the number of images
    in the turn's question."""

    names: pa.Array
    sha256: pa.Array
    num_bytes: pa.Array
    side: pa.Array  # the longer side, in pixels
    shown: np.ndarray  # int64, indices into names
    start: np.ndarray  # int64 (T,)
    before: np.ndarray  # int64 (T,)
    inline: np.ndarray  # int64 (T,)

    @property
    def first(self) -> np.ndarray:
        """(T,) int64: the first image of the turn's conversation, or −1 if there is none up to the turn."""
        return np.where(self.before + self.inline > 0, np.append(self.shown, -1)[self.start], -1)

    def of(self, grouping: Grouping) -> tuple[np.ndarray, np.ndarray]:
        """Returns (indices, offsets): the images of conversation c are indices[offsets[c] : offsets[c + 1]]. A piece of
        a split conversation also contains the images of the turns before it."""
        last = grouping.order[grouping.offsets[1:] - 1]
        lengths = self.before[last] + self.inline[last]
        return self.shown[flat_indices(self.start[grouping.first], lengths)], offsets_of(lengths)


def named_images(batch: pa.RecordBatch) -> set[str]:
    """Returns all images that the annotations refer to."""
    names = set(pc.unique(batch.column("image").drop_null()).to_pylist())
    return names | set(pc.unique(more_images(batch).flatten()).to_pylist())


def more_images(batch: pa.RecordBatch) -> pa.ListArray:
    """Returns the column `more_images`, or a null column for a task without it."""
    if "more_images" in batch.schema.names:
        return batch.column("more_images")
    return pa.nulls(batch.num_rows, pa.list_(pa.string()))


def image_rows(directory: Path, images: Iterable[str]) -> pa.Table:
    """Returns the rows of an images table on disk for these images, sorted by name. Images that are not in it are
    omitted. Each image takes one binary search."""
    reader = open_batches(directory / "images.arrow")
    batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
    firsts = [batch.column("image")[0].as_py() for batch in batches]
    found = []
    for image in sorted(set(images)):
        batch = batches[max(bisect.bisect_right(firsts, image) - 1, 0)] if batches else IMAGES.empty_table()
        names = _Texts(batch.column("image"))
        index = bisect.bisect_left(names, image)
        if index < len(names) and names[index] == image:
            found.append(batch.slice(index, 1))
    return pa.Table.from_batches(found, IMAGES)


class _Texts(Sequence[str]):
    """A string column as a sequence, so that a binary search converts only the values that it compares."""

    def __init__(self, column: pa.Array):
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, index):
        return self._column[index].as_py()


def first_unusable(more: pa.ListArray, images: pa.Table) -> tuple[pa.Array, pa.Array]:
    """Returns (reason, detail) of the first unusable image in each row of `more`, else null. Raises LookupError with
    the name of an image that is not in the images table."""
    reason, detail = (np.full(len(more), None, dtype=object) for _ in range(2))
    if more.null_count < len(more):
        flat = more.flatten()
        found = pc.index_in(flat, value_set=images["image"].combine_chunks())
        if found.null_count:
            raise LookupError(flat.filter(found.is_null())[0].as_py())
        why = images["reject"].combine_chunks().take(found)
        bad = np.flatnonzero(why.is_valid().to_numpy(zero_copy_only=False))[::-1]  # reversed, so the first one wins
        row = pc.list_parent_indices(more).to_numpy()[bad]
        reason[row] = why.take(pa.array(bad)).to_pylist()
        detail[row] = images["detail"].combine_chunks().take(found.take(pa.array(bad))).to_pylist()
    return pa.array(reason, pa.string()), pa.array(detail, pa.string())


def inline_images(batch: pa.RecordBatch, turns: Turns, task: str) -> np.ndarray:
    """(T,) int64: the number of images in each turn's user text. It is 0 in rows that have fewer images than
    placeholders, where `<image>` is ordinary text."""
    none = np.zeros(len(turns.row), np.int64)
    if task != "conversation":
        return none
    counts = pc.count_substring(turns.user, IMAGE_TOKEN).to_numpy().astype(np.int64)
    if not counts.any():
        return none
    row = _row_of_turn(batch, turns)
    of_row = np.bincount(row, counts, batch.num_rows).astype(np.int64)
    return np.where((of_row <= image_counts(batch))[row], counts, 0)


def images_of_turns(
    batch: pa.RecordBatch, turns: Turns, inline: np.ndarray, kept: np.ndarray, images: pa.Table | None
) -> TurnImages:
    """Returns the images of the turns. inline: as returned by `inline_images`; kept: (T,) bool. The inline images of
    a turn that is not kept are dropped with it."""
    more, row = more_images(batch), _row_of_turn(batch, turns)
    has_first = batch.column("image").is_valid().to_numpy(zero_copy_only=False)
    counts = image_counts(batch)
    starts = offsets_of(counts)[:-1]
    encoded = pa.concat_arrays([batch.column("image").drop_null(), more.flatten()]).dictionary_encode()
    indices = encoded.indices.to_numpy()
    shown = np.empty(len(indices), np.int64)
    shown[starts[has_first]] = indices[: has_first.sum()]
    shown[flat_indices(starts + has_first, counts - has_first)] = indices[has_first.sum() :]
    before = counts[row]
    if inline.any():
        head = counts - np.bincount(row, inline, batch.num_rows).astype(np.int64)
        staying = np.ones(len(shown), bool)
        staying[flat_indices((starts + head)[row] + _before_in_row(inline, row), inline)] = np.repeat(kept, inline)
        shown, inline = shown[staying], inline * kept
        starts = offsets_of(segment_sums(staying, np.append(starts, len(staying))))[:-1]
        before = head[row] + _before_in_row(inline, row)
    measured = IMAGES.empty_table() if images is None else images
    at = pc.index_in(encoded.dictionary, value_set=measured["image"])
    sha256, num_bytes = (measured[name].combine_chunks().take(at) for name in ("sha256", "num_bytes"))
    side = pc.max_element_wise(measured["width"], measured["height"]).combine_chunks().take(at)
    return TurnImages(encoded.dictionary, sha256, num_bytes.cast(pa.int32()), side, shown, starts[row], before, inline)


def _row_of_turn(batch: pa.RecordBatch, turns: Turns) -> np.ndarray:
    return np.searchsorted(batch.column("row").to_numpy(), turns.row)


def image_counts(batch: pa.RecordBatch) -> np.ndarray:
    """(rows,) int64: the number of images of each row."""
    others = pc.fill_null(pc.list_value_length(more_images(batch)), 0).to_numpy().astype(np.int64)
    return others + batch.column("image").is_valid().to_numpy(zero_copy_only=False)


def _before_in_row(values: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Returns, for each turn, the sum over the preceding turns of its row. Turns must be sorted by row."""
    running = np.cumsum(values) - values
    return running - running[np.searchsorted(row, row)]
