"""Perceptual hashes: 64 bits of a picture that hardly change when it is encoded, resized or coloured anew.

The hash is pHash (Zauner, 2010): which of the 64 lowest frequencies of the grey picture are above their median. In
integers, so that no bit depends on the platform's sums; the library ImageHash adds floats, and needs PyWavelets.
How well it tells copies from other pictures: benchmarks/decontamination.py.
"""

import numpy as np
from PIL import Image

_SIDE = 32  # pixels of the reduced picture
_KEPT = 8  # frequencies in each direction
_COSINES = np.round(4096 * np.cos(np.pi * np.outer(np.arange(_KEPT), 2 * np.arange(_SIDE) + 1) / (2 * _SIDE))).astype(
    np.int64
)  # (8, 32): the discrete cosine transform
_TONE = 4  # grey levels up and down that count as one tone
_ONE_TONE = _SIDE * _SIDE // 2  # pixels
_AT_ONCE = 1 << 17  # pairs compared at a time: what a cache holds


def perceptual_hash(rgb: Image.Image) -> int | None:
    """The hash of an upright RGB picture, 64 bits. None where half of the picture is one tone: a blank page, a chart,
    a drawing on white. Of those, different ones (the same map with another state marked) have the same hash."""
    coarse = rgb.reduce(max(1, min(rgb.size) // (3 * _SIDE)))  # cheap; the fine filter then sees few pixels
    grey = coarse.convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    pixels = np.asarray(grey, dtype=np.int64)
    tones = np.bincount(pixels.ravel(), minlength=256)
    if np.convolve(tones, np.ones(2 * _TONE + 1, np.int64)).max() > _ONE_TONE:
        return None
    frequencies = _COSINES @ pixels @ _COSINES.T
    bits = frequencies > np.median(frequencies)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def near_pairs(hashes: np.ndarray, others: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs of two uint64 arrays that differ in at most `limit` bits: places in the first, places in the second,
    and the bits; by rising place. Time: one core compares about 1e9 pairs a second."""
    step = max(1, _AT_ONCE // max(1, len(others)))
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for first in range(0, len(hashes), step):
        bits = np.bitwise_count(hashes[first : first + step, None] ^ others)
        near = np.flatnonzero(bits <= limit)  # many times as fast as nonzero of two dimensions
        i, j = np.divmod(near, max(1, len(others)))
        found.append((i + first, j, bits.ravel()[near].astype(np.int64)))
    if not found:
        return (np.empty(0, np.int64),) * 3
    i, j, bits = (np.concatenate(column) for column in zip(*found, strict=True))
    return i, j, bits
