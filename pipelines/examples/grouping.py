"""Groups the turns of each image into multi-turn examples (paper section 4) and decides their order."""

from dataclasses import dataclass

import numpy as np

from pipelines.core.hashing import mix64, seed64
from pipelines.core.ragged import flat_indices, offsets_of, segment_sums


@dataclass(frozen=True)
class Grouping:
    """Turn indices in conversation order: conversation c has the turns `order[offsets[c] : offsets[c + 1]]`."""

    order: np.ndarray  # int64 (T,)
    offsets: np.ndarray  # int64 (C + 1,)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def sizes(self) -> np.ndarray:
        """(C,) int64: the number of turns of each conversation."""
        return np.diff(self.offsets)

    @property
    def first(self) -> np.ndarray:
        """(C,) int64: the first turn of each conversation."""
        return self.order[self.offsets[:-1]]

    def without(self, dropped: np.ndarray) -> "Grouping":
        """Returns the grouping without the turns of `dropped`, (T,) bool. Each conversation must keep at least one."""
        return Grouping(self.order[~dropped], offsets_of(segment_sums(~dropped, self.offsets)))

    def members(self, conversations: np.ndarray) -> np.ndarray:
        """Returns the positions in `order` of the turns of these conversations."""
        return flat_indices(self.offsets[:-1][conversations], self.sizes[conversations])

    def take(self, conversations: np.ndarray) -> "Grouping":
        return Grouping(self.order[self.members(conversations)], offsets_of(self.sizes[conversations]))


def group_turns(
    row: np.ndarray, turn: np.ndarray, image: np.ndarray, *, is_dialogue: bool, max_turns: int, dataset: str, seed: int
) -> Grouping:
    """Groups turns into conversations. row, turn, image: (T,) integers; image is an image index, or -1 for text only.

    Dialogue rows keep the turns and order of the dataset. For other tasks, the turns of one image are shuffled in an
    order that depends only on (seed, dataset, row), and a new conversation starts after every `max_turns` turns. A turn
    without an image forms its own conversation. The parameters stay apart, because this is a pure function of arrays.
    """
    rows_in_turns = np.column_stack([row, turn])
    if is_dialogue:
        order = np.lexsort((rows_in_turns[:, 1], rows_in_turns[:, 0]))
        starts_new = _changes(row[order])
    else:
        shuffled = mix64(row.astype(np.uint64), seed64("turn order", dataset, seed))
        first_row = _first_row_of_image(row, image)
        order = np.lexsort((row, shuffled, first_row))
        group = first_row[order]
        starts_group = _changes(group)
        group_start = np.maximum.accumulate(np.where(starts_group, np.arange(len(order)), 0))
        starts_new = (np.arange(len(order)) - group_start) % max_turns == 0
    starts = np.flatnonzero(starts_new)
    return Grouping(order, np.append(starts, len(order)))


def _first_row_of_image(row: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Returns the smallest row of each turn's image, by which groups are sorted into the order of the official file."""
    result = row.copy()
    with_image = image >= 0
    if with_image.any():
        first = np.full(int(image.max()) + 1, np.iinfo(np.int64).max)
        np.minimum.at(first, image[with_image], row[with_image])
        result[with_image] = first[image[with_image]]
    return result


def _changes(values: np.ndarray) -> np.ndarray:
    changed = np.ones(len(values), dtype=bool)
    changed[1:] = values[1:] != values[:-1]
    return changed


def split(grouping: Grouping, tokens: np.ndarray, head: np.ndarray, limit: int) -> Grouping:
    """Splits every conversation at turn boundaries into pieces of at most `limit` tokens, except where one turn exceeds
    the limit. Conversations of one turn must not be passed.

    tokens: (T,) tokens of each turn without a head; head: (T,) tokens of the head of a piece that starts with the turn.
    Each conversation is split into at least two pieces, since the counts may be one token too low.
    """
    starts: list[int] = []
    for begin, end in zip(grouping.offsets[:-1].tolist(), grouping.offsets[1:].tolist(), strict=True):
        starts += [begin + cut for cut in _cuts(tokens[begin:end].tolist(), head[begin:end].tolist(), limit)]
    return Grouping(grouping.order, np.array([*starts, len(grouping.order)]))


def _cuts(tokens: list[int], head: list[int], limit: int) -> list[int]:
    cuts = [0]
    used = head[0]
    for i, count in enumerate(tokens):
        if i > cuts[-1] and used + count > limit:
            cuts.append(i)
            used = head[i]
        used += count
    return cuts if len(cuts) > 1 else [0, len(tokens) // 2]
