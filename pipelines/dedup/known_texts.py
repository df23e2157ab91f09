"""Decides which texts an embedder knows, from its own tokenizer. Only known texts are compared by their vectors.

All words outside the vocabulary share one token, texts beyond the maximum sequence length share their beginning, and
some tokenizers strip accents and vowel signs. The vectors of such texts are similar whatever the texts mean. So:

An embedder knows a text if its tokens, decoded, are the complete text, and the text's letters belong to scripts of
which the vocabulary has more than the bare letters.

The second half is needed because the characters of a script may be in the vocabulary of a model that was never trained
on its words. The vocabulary of all-MiniLM-L6-v2 has 26,534 pieces of several Latin letters, 8 Cyrillic and no Chinese
ones. Chinese models also work with single characters, but with thousands of them instead of 488.
"""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

# A script is known from this number of pieces of several letters, or of pieces of any length.
MIN_LONG_PIECES, MIN_PIECES = 100, 1000
LATIN = "LATIN"


class KnownTexts:
    """Tokenizes texts and tells which of them the embedder with this tokenizer knows."""

    def __init__(self, tokenizer: Any, limit: int):
        """tokenizer: of transformers. limit: the embedder's maximum number of tokens."""
        self._tokenizer, self._limit = tokenizer, limit
        self._special = frozenset(tokenizer.all_special_ids)
        self._around = tokenizer.num_special_tokens_to_add()
        self.scripts = _scripts(tokenizer)

    def encode(self, texts: Sequence[str]) -> tuple[list[list[int]], list[bool]]:
        """Returns the token ids of texts, at most `limit` for each, and whether each text is known."""
        ids = self._tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
        too_long = [k for k, tokens in enumerate(ids) if len(tokens) > self._limit]
        for k in too_long:
            ids[k] = self._tokenizer(texts[k], truncation=True, max_length=self._limit)["input_ids"]
        cut = set(too_long)
        return ids, [k not in cut and self._holds(tokens, texts[k]) for k, tokens in enumerate(ids)]

    def _holds(self, tokens: list[int], text: str) -> bool:
        if sum(token in self._special for token in tokens) != self._around:  # an unknown word, or "[SEP]" in the text
            return False
        if text.isascii():
            return LATIN in self.scripts or not any(c.isalpha() for c in text)
        decoded = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return _visible(decoded) == _visible(text) and self.scripts.issuperset(scripts_of(text))


def scripts_of(text: str) -> set[str]:
    """Returns the scripts of a text's letters, such as LATIN and HIRAGANA."""
    return {_script(c) for c in text if c.isalpha()}


@lru_cache(maxsize=1 << 16)
def _script(letter: str) -> str:
    """Returns the first word of a letter's Unicode name, which is its script; the ideographs are CJK."""
    return unicodedata.name(unicodedata.normalize("NFKC", letter)[0], "UNNAMED").split()[0]


def _visible(text: str) -> str:
    """Returns a text without case, spaces and invisible characters, in composed form."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return "".join(c for c in folded if unicodedata.category(c) not in ("Cc", "Cf", "Zs", "Zl", "Zp"))


def _scripts(tokenizer: Any) -> frozenset[str]:
    """Returns the scripts of which the vocabulary has many pieces."""
    special = set(tokenizer.all_special_tokens)
    pieces, long_pieces = Counter[str](), Counter[str]()
    for token in tokenizer.get_vocab():
        if token in special:
            continue
        # Byte-level vocabularies spell other characters as bytes, which this turns back into text.
        text = token if token.isascii() else tokenizer.convert_tokens_to_string([token])
        letters = [c for c in text if c.isalpha()]
        if letters:
            script = _script(letters[0])
            pieces[script] += 1
            long_pieces[script] += len(letters) > 1
    return frozenset(s for s in pieces if long_pieces[s] >= MIN_LONG_PIECES or pieces[s] >= MIN_PIECES)
