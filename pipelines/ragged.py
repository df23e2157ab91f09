"""Lists of different lengths as one flat array and offsets: the numpy side of Arrow's list columns."""

import numpy as np


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    """(n,) lengths → (n + 1,) int64: list i is flat[offsets[i] : offsets[i + 1]]."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def places(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Where the elements of lists lie: starts[0], starts[0] + 1, …, then those of the next list."""
    before = offsets_of(lengths)
    return np.arange(before[-1]) + np.repeat(starts - before[:-1], lengths)


def sums(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """(n,) int64: the sum of each list; also of empty ones."""
    running = np.zeros(len(values) + 1, dtype=np.int64)
    np.cumsum(values, out=running[1:])
    return running[offsets[1:]] - running[offsets[:-1]]
