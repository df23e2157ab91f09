"""Packs one window of samples into bins: the compiled inner loop of packing.py.

Each pack takes the longest remaining sample and then a set of others whose lengths sum to the rest of its target. The
set is found by an exact subset sum over the window's lengths, most frequent first, with shifted and OR-ed bit sets. The
target of a pack is the number of remaining tokens divided by the number of remaining packs, so that all packs of a
window are about equally full.
"""

import numpy as np
from numba import njit

NO_LIMIT = 1 << 30  # max_images if there is no limit


@njit(cache=True, nogil=True)
def pack_window(
    lengths: np.ndarray, images: np.ndarray, capacity: int, max_images: int, num_packs: int, out: np.ndarray
) -> int:
    """Assigns samples to packs of at most `capacity` tokens and `max_images` images; returns the number of packs.

    lengths, images: int32 (n,), tokens and images of each sample; num_packs: the desired number of packs, which may be
    exceeded; out: int32 (n,), receives the pack of each sample. No sample may be empty or exceed a limit by itself.
    """
    n = len(lengths)
    counts = np.zeros(capacity + 1, np.int64)  # number of remaining samples of each length
    for length in lengths:
        counts[length] += 1
    tokens_left = np.sum(lengths)
    by_length = np.argsort(lengths, kind="mergesort")
    next_of = np.cumsum(counts) - counts  # index into by_length of the next sample of each length
    frequent = np.flatnonzero(counts)
    frequent = frequent[np.argsort(-counts[frequent], kind="mergesort")]
    sums = np.zeros((len(frequent) + 1, (capacity >> 6) + 1), np.uint64)
    chosen = np.empty(n, np.int64)  # the sample lengths of the current pack
    longest, pack, left = capacity, 0, n
    while left > 0:
        while counts[longest] == 0:
            longest -= 1
        target = max(longest, -(-tokens_left // max(num_packs - pack, 1)))
        counts[longest] -= 1
        size = 1
        chosen[0] = longest
        size += _fill(min(target, capacity) - longest, capacity - longest, counts, frequent, sums, chosen[1:])
        counts[longest] += 1
        if max_images < NO_LIMIT and _images_of(chosen[:size], next_of, by_length, images) > max_images:
            size = _fill_with_few_images(capacity, max_images, counts, next_of, by_length, images, chosen)
        for length in chosen[:size]:
            out[by_length[next_of[length]]] = pack
            next_of[length] += 1
            counts[length] -= 1
            tokens_left -= length
        left -= size
        pack += 1
    return pack


@njit(cache=True, nogil=True)
def _fill(
    target: int, most: int, counts: np.ndarray, frequent: np.ndarray, sums: np.ndarray, chosen: np.ndarray
) -> int:
    """Writes lengths whose sum is as close as possible to `target` and at most `most`; returns their number."""
    words = (most >> 6) + 1
    for word in range(words):
        sums[0, word] = 0
    sums[0, 0] = 1
    used = np.empty(len(frequent), np.int64)
    k = 0  # sums[k] is the bit set of the sums that the first k lengths of `used` can reach
    total = -1
    for length in frequent:
        count = min(counts[length], most // length)
        if count == 0:
            continue
        for word in range(words):
            sums[k + 1, word] = sums[k, word]
        done, step = 0, 1
        while done < count:  # adding 1, 2, 4, … copies covers every number of copies up to `count`
            take = min(step, count - done)
            _join_shifted(sums[k + 1], length * take, words)
            done += take
            step *= 2
        used[k] = length
        k += 1
        if _has(sums[k], target):
            total = target
            break
    if total < 0:
        total = _nearest(sums[k], target, most)
    size = 0
    while k > 0:
        k -= 1
        while not _has(sums[k], total):
            chosen[size] = used[k]
            size += 1
            total -= used[k]
    return size


@njit(cache=True, nogil=True)
def _join_shifted(bits: np.ndarray, by: int, words: int) -> None:
    """Computes bits |= bits << by on `words` 64-bit words."""
    skip, shift = by >> 6, by & 63
    if shift == 0:
        for word in range(words - 1, skip - 1, -1):
            bits[word] |= bits[word - skip]
        return
    up, down = np.uint64(shift), np.uint64(64 - shift)
    for word in range(words - 1, skip, -1):
        bits[word] |= (bits[word - skip] << up) | (bits[word - skip - 1] >> down)
    if skip < words:
        bits[skip] |= bits[0] << up


@njit(cache=True, nogil=True)
def _has(bits: np.ndarray, bit: int) -> bool:
    return (bits[bit >> 6] >> np.uint64(bit & 63)) & np.uint64(1) != np.uint64(0)


@njit(cache=True, nogil=True)
def _nearest(bits: np.ndarray, target: int, most: int) -> int:
    """Returns the set bit nearest to `target` and at most `most`; the lower one in a tie. Bit 0 is always set."""
    for distance in range(most + 1):
        if target - distance >= 0 and _has(bits, target - distance):
            return target - distance
        if target + distance <= most and _has(bits, target + distance):
            return target + distance
    return 0


@njit(cache=True, nogil=True)
def _images_of(chosen: np.ndarray, next_of: np.ndarray, by_length: np.ndarray, images: np.ndarray) -> int:
    """Returns the number of images of the next samples of the chosen lengths."""
    total = 0
    for i in range(len(chosen)):
        same_before = 0
        for j in range(i):
            if chosen[j] == chosen[i]:
                same_before += 1
        total += images[by_length[next_of[chosen[i]] + same_before]]
    return total


@njit(cache=True, nogil=True)
def _fill_with_few_images(
    room: int,
    images_room: int,
    counts: np.ndarray,
    next_of: np.ndarray,
    by_length: np.ndarray,
    images: np.ndarray,
    chosen: np.ndarray,
) -> int:
    """Packs greedily if the limit on images binds: repeatedly takes the longest sample that fits both limits.
    Compiled by numba, which takes arrays instead of objects."""
    size, length = 0, len(counts) - 1
    while length > 0:
        taken = 0
        while taken < counts[length] and length <= room and images[by_length[next_of[length] + taken]] <= images_room:
            room -= length
            images_room -= images[by_length[next_of[length] + taken]]
            chosen[size] = length
            size += 1
            taken += 1
        length -= 1
    return size
