"""Text → tokens word by word, each distinct word once: several times faster than whole texts, with the same tokens.

It holds for tokenizers none of whose tokens reaches from a word over the space after it into the next one, as with
the byte-level and SentencePiece vocabularies of today's language models: there a text may be cut before a space that
stands between two words. Whether a tokenizer is of this kind is found out from its vocabulary and by trial.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Tokenizer

from pipelines.ragged import offsets_of, places, sums
from pipelines.tokenizer import PreparedTokenizer

_MARK = "\x1f"  # stands before the space of every word after the first, while a text is cut
# A space that does not stand alone between two words, and the mark itself.
_ODD = r"^ | $|[\s\pZ\x0B\x1C-\x1F\x85] | [\s\pZ\pM\x0B\x1C-\x1F\x85]|\x1F"
_BEFORE = "a"  # the end of a word: where words after the first are cut off
_MOST_KNOWN = 1 << 20  # distinct words kept; more are forgotten and tokenised again
_SPACES = "Ġ▁ \n\t\rĊĉč\xa0Â"  # how vocabularies write a space, and other white space
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
    """Texts as tokens, with the words that they are made of: text t is words[offsets[t] : offsets[t + 1]]."""

    ids: np.ndarray  # int32, of all texts
    ends: np.ndarray  # int64 (words + 1,): word w is ids[ends[w] : ends[w + 1]]
    offsets: np.ndarray  # int64 (texts + 1,)


class WordTokenizer:
    """Tokenises texts that stand after a special token. Remembers words: keep one for a whole job."""

    def __init__(self, prepared: PreparedTokenizer):
        self._tokenizer = prepared.tokenizer
        self._after_special = prepared.eos_token
        self.is_exact = _joins_nothing_over_spaces(prepared)
        self._forget()

    def _forget(self) -> None:
        self._known: dict[str, int] = {}
        self._ids = np.zeros(0, np.int32)
        self._offsets = np.zeros(1, np.int64)

    def can_encode(self, texts: pa.Array) -> np.ndarray:
        """(T,) bool: texts whose spaces all stand alone between two words."""
        if not self.is_exact:
            return np.zeros(len(texts), dtype=bool)
        return ~pc.match_substring_regex(texts, _ODD).to_numpy(zero_copy_only=False)

    def encode(self, texts: pa.Array) -> Words:
        """Only for texts that `can_encode` allows."""
        cut = pc.split_pattern(pc.replace_substring(texts, " ", f"{_MARK} "), _MARK)
        words = cut.flatten().dictionary_encode()
        number = self._numbers(words.dictionary.to_pylist())[words.indices.to_numpy()]
        lengths = self._offsets[number + 1] - self._offsets[number]
        ids = self._ids[places(self._offsets[number], lengths)]
        return Words(ids, offsets_of(lengths), cut.offsets.to_numpy().astype(np.int64) - cut.offsets[0].as_py())

    def _numbers(self, distinct: Sequence[str]) -> np.ndarray:
        if len(self._known) + len(distinct) > _MOST_KNOWN:
            self._forget()
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
    """(T,) int64: how many tokens stand in each text before its word number `num_words`."""
    return words.ends[words.offsets[:-1] + num_words] - words.ends[words.offsets[:-1]]


def lengths(words: Words) -> np.ndarray:
    """(T,) int64: tokens of each text."""
    return sums(np.diff(words.ends), words.offsets)


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def _joins_nothing_over_spaces(prepared: PreparedTokenizer) -> bool:
    tokenizer = prepared.tokenizer
    if json.loads(tokenizer.to_str())["model"]["type"] == "Unigram":
        return False  # of equally good ways to cut a word, it takes one that depends on what stands before
    for added in tokenizer.get_added_tokens_decoder().values():
        if re.search(r"\s", added.content) or (added.content not in prepared.special_tokens and _reaches_out(added)):
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


def _reaches_out(added) -> bool:
    return added.lstrip or added.rstrip
