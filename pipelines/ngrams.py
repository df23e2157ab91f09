"""Which texts share n words in a row, whatever their case, accents and punctuation."""

import functools
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.hashing import seed64

PATTERN = 10  # an n-gram that stands more often tells the form of many texts, and nothing of one
_PRIME = np.uint64(0x100000001B3)  # multiplies between the words of an n-gram, so that their order counts


@dataclass(frozen=True)
class Ngrams:
    """All n-grams of some texts: 64-bit hashes, of bare words. A text of fewer words has none.

    hashes, texts, starts: (G,) each: the n-gram, the number of its text, the number of its first word in `words`.
    """

    n: int
    words: pa.Array  # of all texts in a row
    hashes: np.ndarray  # uint64
    texts: np.ndarray  # int64
    starts: np.ndarray  # int64

    @staticmethod
    def of(texts: pa.Array, n: int) -> "Ngrams":
        """texts: strings, no null."""
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
    def _telling(self) -> tuple[np.ndarray, np.ndarray]:
        """The distinct hashes that are no pattern, sorted, and the first text that holds each."""
        known, first, times = np.unique(self.hashes, return_index=True, return_counts=True)
        return known[times <= PATTERN], self.texts[first[times <= PATTERN]]

    def shared_with(self, others: "Ngrams") -> list[tuple[int, int, str]]:
        """(text here, text there, the words) for each text here that shares an n-gram with one there: its first such
        n-gram, and the first text there that holds it. N-grams in more than PATTERN texts there do not count (as in
        Brown et al., "Language Models are Few-Shot Learners", 2020, appendix C). By rising text."""
        known, holders = others._telling
        if not len(known) or not len(self.hashes):
            return []
        place = np.minimum(np.searchsorted(known, self.hashes), len(known) - 1)
        shared = np.flatnonzero(known[place] == self.hashes)
        texts, at = np.unique(self.texts[shared], return_index=True)
        there = holders[place[shared[at]]]
        begins = self.starts[shared[at]]
        said = [" ".join(self.words[b : b + self.n].to_pylist()) for b in begins.tolist()]
        return list(zip(texts.tolist(), there.tolist(), said, strict=True))


def _words(texts: pa.Array) -> pa.ListArray:
    """Letters and digits between all else; a Chinese or Japanese character is a word, since no space tells them."""
    plain = pc.utf8_lower(pc.utf8_normalize(texts, "NFKD"))
    plain = pc.replace_substring_regex(plain, pattern=r"\p{M}+", replacement="")
    plain = pc.replace_substring_regex(plain, pattern=r"[^\p{L}\p{N}]+", replacement=" ")
    plain = pc.replace_substring_regex(plain, pattern=r"[\p{Han}\p{Hiragana}\p{Katakana}]", replacement=r" \0 ")
    return pc.utf8_split_whitespace(pc.utf8_trim_whitespace(plain))
