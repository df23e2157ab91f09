"""Tokens to text, piece by piece, without breaking a character; and stop strings in such text."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # how a decoder shows the first bytes of a character


class Detokenizer:
    """The text of an answer as its tokens come. Spaces before it are the chat template's, and left out.

    A token's text may depend on the one before (SentencePiece's spaces) and may be half a character, so the tokens of
    the last piece are decoded again with the new ones, and nothing is given out while the text ends inside a character.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        self._tokens: list[int] = []  # those of the last piece, then those that have no piece yet
        self._given = 0  # how many of them are those of the last piece
        self._begun = False

    def push(self, token: int) -> str:
        """The text that is certain now; often one token's, sometimes nothing."""
        self._tokens.append(token)
        return self._take(final=False)

    def end(self) -> str:
        """What is left, with U+FFFD for bytes that are no character."""
        return self._take(final=True)

    def _take(self, final: bool) -> str:
        before, now = self._decode(self._tokens[: self._given]), self._decode(self._tokens)
        if len(now) <= len(before) or (now.endswith(_UNFINISHED) and not final):
            return ""
        self._tokens = self._tokens[self._given :]
        self._given = len(self._tokens)
        piece = now[len(before) :]
        if not self._begun:
            piece = piece.lstrip()
            self._begun = bool(piece)
        return piece

    def _decode(self, tokens: list[int]) -> str:
        text = self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text


class StopStrings:
    """Cuts a text off before the first stop string in it, although the text comes in pieces."""

    def __init__(self, stops: Sequence[str]):
        """stops: none of them empty."""
        self._stops = stops
        self._held = ""  # may be the beginning of a stop string
        self.found = False

    def push(self, piece: str) -> str:
        """What is certainly not part of a stop string; nothing more once one was `found`."""
        if self.found:
            return ""
        text = self._held + piece
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            self.found, self._held = True, ""
            return text[: min(places)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def end(self) -> str:
        """What was held back, and is no stop string after all."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of the text could be the beginning of the stop string."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
