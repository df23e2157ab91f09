"""Finds texts that share n consecutive words, ignoring case, accents and punctuation."""

import functools
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.core.hashing import seed64

MAX_OCCURRENCES = 10  # an n-gram that occurs more often is boilerplate and does not identify a text
_PRIME = np.uint64(0x100000001B3)  # multiplies between the words of an n-gram, so that their order counts


@dataclass(frozen=True)
class Ngrams:
    """The 64-bit hashes of all n-grams of some texts, computed on normalised words. A text of fewer words has none.

    hashes, texts, starts: (G,) each: the n-gram, the index of its text, the index of its first word in `words`.
    """

    n: int
    words: pa.Array  # of all texts, concatenated
    hashes: np.ndarray  # uint64
    texts: np.ndarray  # int64
    starts: np.ndarray  # int64

    @staticmethod
    def of(texts: pa.Array, n: int) -> "Ngrams":
        """Computes the n-grams of `texts`: strings without nulls."""
        lists = _words(texts)
        words = lists.flatten()
        text = pc.list_parent_indices(lists).to_numpy()
        number = max(0, len(words) - n + 1)
        distinct = words.dictionary_encode()
        of_word = np.array([seed64(word) for word in distinct.dictionary.to_pylist()], np.uint64)
        values = of_word[distinct.indices.to_numpy()]
        hashes = np.zeros(number, np.uint64)
        for k in range(n):
            hashes = hashes * _PRIME + values[k : k + number]
        starts = np.flatnonzero(text[:number] == text[n - 1 :])
        return Ngrams(n, words, hashes[starts], text[starts], starts)

    @functools.cached_property
    def _distinctive(self) -> tuple[np.ndarray, np.ndarray]:
        """The distinct hashes that occur at most PATTERN times, sorted, and the first text that contains each."""
        known, first, times = np.unique(self.hashes, return_index=True, return_counts=True)
        return known[times <= MAX_OCCURRENCES], self.texts[first[times <= MAX_OCCURRENCES]]

    def shared_with(self, others: "Ngrams") -> list[tuple[int, int, str]]:
        """Returns (text index, index in `others`, shared words) for each text that shares an n-gram with `others`, in
        ascending order: its first shared n-gram, and the first of the others that contains it. N-grams that occur more
        than PATTERN times in `others` do not count (as in Brown et al., "Language Models are Few-Shot Learners", 2020,
        appendix C)."""
        known, holders = others._distinctive
        if not len(known) or not len(self.hashes):
            return []
        position = np.minimum(np.searchsorted(known, self.hashes), len(known) - 1)
        shared = np.flatnonzero(known[position] == self.hashes)
        texts, at = np.unique(self.texts[shared], return_index=True)
        there = holders[position[shared[at]]]
        begins = self.starts[shared[at]]
        shared_words = [" ".join(self.words[b : b + self.n].to_pylist()) for b in begins.tolist()]
        return list(zip(texts.tolist(), there.tolist(), shared_words, strict=True))


def _words(texts: pa.Array) -> pa.ListArray:
    """Splits texts into runs of letters and digits; each Chinese or Japanese character is a word, as no spaces separate
    them."""
    plain = pc.utf8_lower(pc.utf8_normalize(texts, "NFKD"))
    plain = pc.replace_substring_regex(plain, pattern=r"\p{M}+", replacement="")
    plain = pc.replace_substring_regex(plain, pattern=r"[^\p{L}\p{N}]+", replacement=" ")
    plain = pc.replace_substring_regex(plain, pattern=r"[\p{Han}\p{Hiragana}\p{Katakana}]", replacement=r" \0 ")
    return pc.utf8_split_whitespace(pc.utf8_trim_whitespace(plain))
