"""Perceptual hashes: 64 bits of an image that hardly change when it is re-encoded, resized or recoloured.

The hash is pHash (Zauner, 2010): each bit tells whether one of the 64 lowest DCT frequencies of the grey image exceeds
their median. It is computed in integers, so no bit depends on the platform's float summation; the library ImageHash
uses floats and requires PyWavelets. benchmarks/data/decontamination.py measures how well it tells copies from others.
"""

import numpy as np
from PIL import Image

_SIDE = 32  # pixels, the side of the reduced image
_FREQUENCIES = 8  # in each direction
_COSINES = np.round(
    4096 * np.cos(np.pi * np.outer(np.arange(_FREQUENCIES), 2 * np.arange(_SIDE) + 1) / (2 * _SIDE))
).astype(np.int64)  # (8, 32): the discrete cosine transform
_TONE = 4  # grey levels within ±4 count as one tone
_ONE_TONE = _SIDE * _SIDE // 2  # pixels
_AT_ONCE = 1 << 17  # pairs compared at a time, so that they fit into the CPU cache


def perceptual_hash(rgb: Image.Image) -> int | None:
    """Returns the 64-bit hash of an upright RGB image, or None if more than half of it is one tone, as in a blank page,
    a chart or a drawing on white. Different images of that kind (the same map with another state marked) would collide.
    """
    coarse = rgb.reduce(max(1, min(rgb.size) // (3 * _SIDE)))  # a cheap reduction leaves few pixels for the fine filter
    grey = coarse.convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    pixels = np.asarray(grey, dtype=np.int64)
    tones = np.bincount(pixels.ravel(), minlength=256)
    if np.convolve(tones, np.ones(2 * _TONE + 1, np.int64)).max() > _ONE_TONE:
        return None
    frequencies = _COSINES @ pixels @ _COSINES.T
    bits = frequencies > np.median(frequencies)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def near_pairs(hashes: np.ndarray, others: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Finds all pairs of two uint64 arrays that differ in at most `limit` bits. Returns the indices into the first
    (ascending), the indices into the second, and the numbers of differing bits. One core compares about 1e9 pairs/s."""
    step = max(1, _AT_ONCE // max(1, len(others)))
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for first in range(0, len(hashes), step):
        bits = np.bitwise_count(hashes[first : first + step, None] ^ others)
        near = np.flatnonzero(bits <= limit)  # much faster than a two-dimensional nonzero
        i, j = np.divmod(near, max(1, len(others)))
        found.append((i + first, j, bits.ravel()[near].astype(np.int64)))
    if not found:
        return (np.empty(0, np.int64),) * 3
    i, j, bits = (np.concatenate(column) for column in zip(*found, strict=True))
    return i, j, bits
