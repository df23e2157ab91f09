"""Detokenises a stream without splitting characters, and finds stop strings in streamed text."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # a decoder's output for an incomplete character


class Detokenizer:
    """Converts the tokens of an answer to text as they arrive; drops leading spaces, which the chat template supplies.

    A token's text can depend on the previous one (SentencePiece's spaces) and can be part of a character. Therefore the
    tokens of the last piece are decoded again with the new ones, and incomplete characters are held back.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        self._tokens: list[int] = []  # tokens of the last piece, followed by tokens that are still held back
        self._emitted = 0  # number of tokens in `_tokens` that belong to the last piece
        self._started = False

    def push(self, token: int) -> str:
        """Returns the text that is now final: often that of one token, sometimes none."""
        self._tokens.append(token)
        return self._take(final=False)

    def end(self) -> str:
        """Returns the remaining text, with U+FFFD for incomplete characters."""
        return self._take(final=True)

    def _take(self, final: bool) -> str:
        before, now = self._decode(self._tokens[: self._emitted]), self._decode(self._tokens)
        if len(now) <= len(before) or (now.endswith(_UNFINISHED) and not final):
            return ""
        self._tokens = self._tokens[self._emitted :]
        self._emitted = len(self._tokens)
        piece = now[len(before) :]
        if not self._started:
            piece = piece.lstrip()
            self._started = bool(piece)
        return piece

    def _decode(self, tokens: list[int]) -> str:
        text = self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text


class StopStrings:
    """Truncates streamed text before its first stop string."""

    def __init__(self, stops: Sequence[str]):
        """stops: non-empty strings."""
        self._stops = stops
        self._held = ""  # possible start of a stop string
        self.found = False

    def push(self, piece: str) -> str:
        """Returns the text that cannot be part of a stop string; after a stop string is `found`, returns nothing."""
        if self.found:
            return ""
        text = self._held + piece
        starts = [start for stop in self._stops if (start := text.find(stop)) >= 0]
        if starts:
            self.found, self._held = True, ""
            return text[: min(starts)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def end(self) -> str:
        """Returns the text that was held back but did not turn out to be a stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Returns how many characters at the end of the text could be the start of the stop string."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
