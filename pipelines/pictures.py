"""Which pictures an example shows, and where they stand: at its head, or where a question has an `<image>`.

`more_images` of the annotations, the pictures of a row after its first, are the concern of this file alone: job 1 cuts
the images table by the hash of a row's first picture, so the others are looked up in the whole table on disk.
"""

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.arrow_files import open_batches
from pipelines.conversation import Grouping
from pipelines.instructify import Turns
from pipelines.ragged import offsets_of, places, sums
from pipelines.schema import IMAGES
from pipelines.tokenizer import IMAGE_TOKEN

MAX_IMAGES = 8  # of an example, unless a recipe says otherwise


@dataclass(frozen=True)
class Pictures:
    """The pictures of a partition's turns. What a conversation shows is one run of `shown`: of each of its turns, it
    begins at `start`; so many of it stand `before` the turn, and so many `inline`, in its question."""

    names: pa.Array
    sha256: pa.Array
    num_bytes: pa.Array
    side: pa.Array  # the longer one, in pixels
    shown: np.ndarray  # int64, numbers of names
    start: np.ndarray  # int64 (T,)
    before: np.ndarray  # int64 (T,)
    inline: np.ndarray  # int64 (T,)

    @property
    def first(self) -> np.ndarray:
        """(T,) int64: the first picture that the turn's conversation shows, −1 where it shows none."""
        return np.where(self.before + self.inline > 0, np.append(self.shown, -1)[self.start], -1)

    def of(self, grouping: Grouping) -> tuple[np.ndarray, np.ndarray]:
        """The pictures of conversation c are numbers[offsets[c] : offsets[c + 1]]. A piece of a split conversation
        shows those of the turns before it, too."""
        last = grouping.order[grouping.offsets[1:] - 1]
        lengths = self.before[last] + self.inline[last]
        return self.shown[places(self.start[grouping.first], lengths)], offsets_of(lengths)


def named_images(batch: pa.RecordBatch) -> set[str]:
    """All pictures that annotations name."""
    names = set(pc.unique(batch.column("image").drop_null()).to_pylist())
    return names | set(pc.unique(more_images(batch).flatten()).to_pylist())


def more_images(batch: pa.RecordBatch) -> pa.ListArray:
    """The column, for tasks that have none as well."""
    if "more_images" in batch.schema.names:
        return batch.column("more_images")
    return pa.nulls(batch.num_rows, pa.list_(pa.string()))


def measures(directory: Path, images: Iterable[str]) -> pa.Table:
    """The rows of an images table on disk that measure these, in order of name; those that are not there are left out.
    Costs a binary search for each."""
    reader = open_batches(directory / "images.arrow")
    batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
    firsts = [batch.column("image")[0].as_py() for batch in batches]
    found = []
    for image in sorted(set(images)):
        batch = batches[max(bisect.bisect_right(firsts, image) - 1, 0)] if batches else IMAGES.empty_table()
        names = _Texts(batch.column("image"))
        place = bisect.bisect_left(names, image)
        if place < len(names) and names[place] == image:
            found.append(batch.slice(place, 1))
    return pa.Table.from_batches(found, IMAGES)


class _Texts(Sequence[str]):
    """A column as a sequence, of which a search reads only what it looks at."""

    def __init__(self, column: pa.Array):
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, place):
        return self._column[place].as_py()


def unusable(more: pa.ListArray, images: pa.Table) -> tuple[pa.Array, pa.Array]:
    """(reason, detail) of the first picture of each row's `more` that cannot be used, else null.
    Raises LookupError, with its name, for a picture that was never measured."""
    reason, detail = (np.full(len(more), None, dtype=object) for _ in range(2))
    if more.null_count < len(more):
        flat = more.flatten()
        found = pc.index_in(flat, value_set=images["image"].combine_chunks())
        if found.null_count:
            raise LookupError(flat.filter(found.is_null())[0].as_py())
        why = images["reject"].combine_chunks().take(found)
        bad = np.flatnonzero(why.is_valid().to_numpy(zero_copy_only=False))[::-1]  # so that the first stays
        row = pc.list_parent_indices(more).to_numpy()[bad]
        reason[row] = why.take(pa.array(bad)).to_pylist()
        detail[row] = images["detail"].combine_chunks().take(found.take(pa.array(bad))).to_pylist()
    return pa.array(reason, pa.string()), pa.array(detail, pa.string())


def inline_pictures(batch: pa.RecordBatch, turns: Turns, task: str) -> np.ndarray:
    """(T,) int64: how many pictures stand in each turn's user text. None in rows that have fewer than places: there
    `<image>` is but text."""
    none = np.zeros(len(turns.row), np.int64)
    if task != "conversation":
        return none
    counts = pc.count_substring(turns.user, IMAGE_TOKEN).to_numpy().astype(np.int64)
    if not counts.any():
        return none
    row = _row_of_turn(batch, turns)
    of_row = np.bincount(row, counts, batch.num_rows).astype(np.int64)
    return np.where((of_row <= numbers_of_pictures(batch))[row], counts, 0)


def pictures_of(
    batch: pa.RecordBatch, turns: Turns, inline: np.ndarray, kept: np.ndarray, images: pa.Table | None
) -> Pictures:
    """inline: as above; kept: (T,) bool. A turn that is not kept takes the pictures in its text along."""
    more, row = more_images(batch), _row_of_turn(batch, turns)
    has_first = batch.column("image").is_valid().to_numpy(zero_copy_only=False)
    counts = numbers_of_pictures(batch)
    starts = offsets_of(counts)[:-1]
    encoded = pa.concat_arrays([batch.column("image").drop_null(), more.flatten()]).dictionary_encode()
    number = encoded.indices.to_numpy()
    shown = np.empty(len(number), np.int64)
    shown[starts[has_first]] = number[: has_first.sum()]
    shown[places(starts + has_first, counts - has_first)] = number[has_first.sum() :]
    before = counts[row]
    if inline.any():
        head = counts - np.bincount(row, inline, batch.num_rows).astype(np.int64)
        staying = np.ones(len(shown), bool)
        staying[places((starts + head)[row] + _before_in_row(inline, row), inline)] = np.repeat(kept, inline)
        shown, inline = shown[staying], inline * kept
        starts = offsets_of(sums(staying, np.append(starts, len(staying))))[:-1]
        before = head[row] + _before_in_row(inline, row)
    measured = IMAGES.empty_table() if images is None else images
    at = pc.index_in(encoded.dictionary, value_set=measured["image"])
    sha256, num_bytes = (measured[name].combine_chunks().take(at) for name in ("sha256", "num_bytes"))
    side = pc.max_element_wise(measured["width"], measured["height"]).combine_chunks().take(at)
    return Pictures(encoded.dictionary, sha256, num_bytes.cast(pa.int32()), side, shown, starts[row], before, inline)


def _row_of_turn(batch: pa.RecordBatch, turns: Turns) -> np.ndarray:
    return np.searchsorted(batch.column("row").to_numpy(), turns.row)


def numbers_of_pictures(batch: pa.RecordBatch) -> np.ndarray:
    """(rows,) int64."""
    others = pc.fill_null(pc.list_value_length(more_images(batch)), 0).to_numpy().astype(np.int64)
    return others + batch.column("image").is_valid().to_numpy(zero_copy_only=False)


def _before_in_row(values: np.ndarray, row: np.ndarray) -> np.ndarray:
    """For each turn the sum over the turns of its row that come before it; turns are in order of row."""
    running = np.cumsum(values) - values
    return running - running[np.searchsorted(row, row)]
