"""Tokenises texts word by word, each distinct word once: several times faster than complete texts, with equal tokens.

This requires a tokenizer without tokens that span a word, the space after it and the next word, as is the case for the
byte-level and SentencePiece vocabularies of current language models. A text can then be split before each space that
separates two words. The vocabulary and a set of trial texts decide whether a tokenizer qualifies.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Tokenizer

from pipelines.core.ragged import flat_indices, offsets_of, segment_sums
from pipelines.tokens.tokenizer import PreparedTokenizer

_MARK = "\x1f"  # temporarily marks the split positions, before the space of every word after the first
# A space that is not a single space between two words, or the mark itself.
_ODD = r"^ | $|[\s\pZ\x0B\x1C-\x1F\x85] | [\s\pZ\pM\x0B\x1C-\x1F\x85]|\x1F"
_BEFORE = "a"  # a word end that precedes every word after the first when it is tokenised; its tokens are dropped
_MOST_KNOWN = 1 << 20  # distinct words in the cache, which is cleared when it would exceed this size
_SPACES = "Ġ▁ \n\t\rĊĉč\xa0Â"  # how vocabularies encode a space and other whitespace
_LEFT = ("a", "7", "é", "?", ".", ",", '"', "'", ")", "中", "😀", "-", "_", ">", "’s", "…", "a\nb", "Z", "%", "}")
_RIGHT = (
    "b",
    "Is",
    "9",
    "12",
    "é",
    "中",
    "😀",
    "-",
    "--",
    '"x"',
    "'s",
    "(a)",
    "_",
    "<b>",
    "…",
    "B\nA.",
    "$3",
    "{",
    "’",
)


@dataclass(frozen=True)
class Words:
    """Tokenised texts and their words: text t has the words with indices offsets[t] to offsets[t + 1] − 1."""

    ids: np.ndarray  # int32, of all texts
    ends: np.ndarray  # int64 (words + 1,): word w is ids[ends[w] : ends[w + 1]]
    offsets: np.ndarray  # int64 (texts + 1,)


class WordTokenizer:
    """Tokenises texts that follow a special token. Caches words, so reuse one instance for a complete job."""

    def __init__(self, prepared: PreparedTokenizer):
        self._tokenizer = prepared.tokenizer
        self._after_special = prepared.eos_token
        self.is_exact = _splits_at_spaces(prepared)
        self._clear()

    def _clear(self) -> None:
        self._known: dict[str, int] = {}
        self._ids = np.zeros(0, np.int32)
        self._offsets = np.zeros(1, np.int64)

    def can_encode(self, texts: pa.Array) -> np.ndarray:
        """(T,) bool: True for texts in which every space is a single space between two words."""
        if not self.is_exact:
            return np.zeros(len(texts), dtype=bool)
        return ~pc.match_substring_regex(texts, _ODD).to_numpy(zero_copy_only=False)

    def encode(self, texts: pa.Array) -> Words:
        """Tokenises texts, all of which must satisfy `can_encode`."""
        cut = pc.split_pattern(pc.replace_substring(texts, " ", f"{_MARK} "), _MARK)
        words = cut.flatten().dictionary_encode()
        index = self._indices(words.dictionary.to_pylist())[words.indices.to_numpy()]
        lengths = self._offsets[index + 1] - self._offsets[index]
        ids = self._ids[flat_indices(self._offsets[index], lengths)]
        return Words(ids, offsets_of(lengths), cut.offsets.to_numpy().astype(np.int64) - cut.offsets[0].as_py())

    def _indices(self, distinct: Sequence[str]) -> np.ndarray:
        if len(self._known) + len(distinct) > _MOST_KNOWN:
            self._clear()
        new = [word for word in distinct if word not in self._known]
        if new:
            first, later = self._after_special, self._after_special + _BEFORE
            dropped = {anchor: len(_ids(self._tokenizer, anchor)) for anchor in (first, later)}
            anchors = [later if word.startswith(" ") else first for word in new]
            encodings = self._tokenizer.encode_batch_fast(
                [anchor + word for anchor, word in zip(anchors, new, strict=True)], add_special_tokens=False
            )
            found = [encoding.ids[dropped[anchor] :] for encoding, anchor in zip(encodings, anchors, strict=True)]
            self._known.update(zip(new, range(len(self._known), len(self._known) + len(new)), strict=True))
            lengths = np.array([len(ids) for ids in found])
            self._ids = np.concatenate([self._ids, *(np.array(ids, np.int32) for ids in found)])
            self._offsets = np.append(self._offsets, self._offsets[-1] + np.cumsum(lengths))
        return np.fromiter((self._known[word] for word in distinct), np.int64, len(distinct))


def tokens_before(words: Words, num_words: np.ndarray) -> np.ndarray:
    """(T,) int64: the number of tokens in the first `num_words` words of each text."""
    return words.ends[words.offsets[:-1] + num_words] - words.ends[words.offsets[:-1]]


def lengths(words: Words) -> np.ndarray:
    """(T,) int64: the number of tokens of each text."""
    return segment_sums(np.diff(words.ends), words.offsets)


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def _splits_at_spaces(prepared: PreparedTokenizer) -> bool:
    tokenizer = prepared.tokenizer
    if json.loads(tokenizer.to_str())["model"]["type"] == "Unigram":
        return False  # its choice between equally likely segmentations depends on the preceding text
    for added in tokenizer.get_added_tokens_decoder().values():
        if re.search(r"\s", added.content) or (added.content not in prepared.special_tokens and _strips_spaces(added)):
            return False
    over = re.compile(f"[^{_SPACES}][Ġ▁ ]")
    if any(over.search(token) for token in tokenizer.get_vocab(with_added_tokens=False)):
        return False
    first = prepared.eos_token
    cut_off = _ids(tokenizer, first + _BEFORE)
    for left in _LEFT:
        begin = _ids(tokenizer, first + left)
        for right in _RIGHT:
            apart = _ids(tokenizer, f"{first}{_BEFORE} {right}")
            whole = _ids(tokenizer, f"{first}{left} {right}")
            if apart[: len(cut_off)] != cut_off or whole != begin + apart[len(cut_off) :]:
                return False
    return True


def _strips_spaces(added) -> bool:
    return added.lstrip or added.rstrip
