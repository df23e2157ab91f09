"""Stable hashes, which unlike `hash()` give the same value on every machine, in every process and version."""

import hashlib

import numpy as np


def seed64(*parts: str | int) -> int:
    """Derives a 64-bit seed for the functions below from strings and integers."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def mix64(values: np.ndarray, seed: int) -> np.ndarray:
    """Applies splitmix64 to each value: uint64 in, uint64 out, a bijection for each seed."""
    x = values.astype(np.uint64) + np.uint64(seed) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
