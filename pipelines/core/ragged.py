"""Ragged lists as one flat array and offsets, the NumPy counterpart of Arrow list columns."""

import numpy as np


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    """(n,) lengths → (n + 1,) int64 offsets: list i is flat[offsets[i] : offsets[i + 1]]."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def flat_indices(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns the flat indices of the elements of the given lists: starts[0], starts[0] + 1, …, then the next list."""
    before = offsets_of(lengths)
    return np.arange(before[-1]) + np.repeat(starts - before[:-1], lengths)


def segment_sums(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """(n,) int64: the sum of each list, 0 for an empty one."""
    running = np.zeros(len(values) + 1, dtype=np.int64)
    np.cumsum(values, out=running[1:])
    return running[offsets[1:]] - running[offsets[:-1]]
