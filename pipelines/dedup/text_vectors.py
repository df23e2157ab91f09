"""Looks up the vectors of texts that are addressed by index, as pipelines/dedup/similarity.py does."""

from collections.abc import Sequence

import numpy as np

from pipelines.dedup.embeddings import Embeddings

VECTORS_AT_ONCE = 1 << 14  # bounds memory


class TextVectors:
    """The vectors of some texts, addressed by index and looked up on first use."""

    def __init__(self, texts: Sequence[str], embeddings: Embeddings):
        distinct = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        self._texts = np.array(list(distinct), dtype=object)
        self._row = np.array([distinct[text] for text in texts], np.int64)
        self._embeddings = embeddings
        self._is_loaded = np.zeros(len(distinct), bool)
        self._matrix = np.zeros((len(distinct), embeddings.dim), np.float32)
        self._known = np.zeros(len(distinct), bool)

    def load(self) -> None:
        self._look_up(np.arange(len(self._texts)))

    def known(self, indices: np.ndarray) -> np.ndarray:
        """Returns whether the embedder knows the texts at an array of indices, which were looked up before."""
        return self._known[self._row[indices]]

    def cosine(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Returns the cosines (K,) float32 of texts at two arrays of indices (K,)."""
        first, second = self._row[first], self._row[second]
        self._look_up(np.union1d(first[~self._is_loaded[first]], second[~self._is_loaded[second]]))
        values = np.empty(len(first), np.float32)
        for start in range(0, len(first), VECTORS_AT_ONCE):
            part = slice(start, start + VECTORS_AT_ONCE)
            values[part] = np.einsum("kd,kd->k", self._matrix[first[part]], self._matrix[second[part]])
        return values

    def _look_up(self, new: np.ndarray) -> None:
        if len(new):
            self._matrix[new], self._known[new] = self._embeddings.look_up(self._texts[new].tolist())
            self._is_loaded[new] = True
