"""Tokenises conversations so that texts never become control tokens: only the chat template writes those.

A tokenizer finds its added tokens in any text, so `</s>` in a question would end the conversation. Here the control
tokens get names that no text contains. The ids, and all other settings of the tokenizer, stay the same, so every text
without a control token has exactly the ids that it has in training.
"""

import json
import re
import secrets
from collections.abc import Callable, Sequence
from typing import Any

from tokenizers import Tokenizer, models

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # how some vocabularies write the bytes of a text
_MARKUP = re.compile(r"<[|｜].*[|｜]>|</?s>|<(?:pad|unk|bos|eos)>")


class PlainTextError(ValueError):
    """Raised for a tokenizer or a chat template whose control tokens cannot be told from text."""


def control_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """Returns the added tokens that are not part of a text, with their ids: special tokens, and those that are written
    like one although the tokenizer does not declare them special. Added words, runs of spaces and bytes are texts."""
    added = [
        (id, token) for id, token in tokenizer.get_added_tokens_decoder().items() if not _BYTE.match(token.content)
    ]
    return {token.content: id for id, token in added if token.special or _MARKUP.fullmatch(token.content)}


def unknown_token(tokenizer: Tokenizer) -> str | None:
    """Returns the token that stands for unknown characters of a text, which is therefore no sign of a control token."""
    if not isinstance(tokenizer.model, models.Unigram):
        return getattr(tokenizer.model, "unk_token", None)
    model = json.loads(tokenizer.to_str())["model"]
    return None if model["unk_id"] is None else model["vocab"][model["unk_id"]][0]


class PlainTextTokenizer:
    """Tokenises rendered conversations; made once for a tokenizer."""

    def __init__(self, tokenizer: Tokenizer):
        self.control = control_tokens(tokenizer)
        secret = secrets.token_hex(16)
        self._names = {token: f"x{secret}n{id}x" for token, id in self.control.items()}
        longest_first = sorted(self.control, key=len, reverse=True)  # as the tokenizer matches them
        self._any = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._tokenizer = Tokenizer.from_str(json.dumps(_renamed(json.loads(tokenizer.to_str()), self._names)))

    def encode(
        self,
        messages: Sequence[dict[str, Any]],
        render: Callable[[list[dict[str, Any]]], str],
        repeated: dict[str, int],
    ) -> list[int]:
        """Returns the token ids of a conversation in chat-template format.

        render: applies the chat template. It receives a placeholder for each text, which it must print unchanged.
        repeated: control token → how often it stands for one of the template, such as `<image>`.
        """
        texts = _Texts()
        pieces = texts.split(render(texts.replace(messages)))
        for token, times in repeated.items():
            pieces[::2] = [piece.replace(token, token * times) for piece in pieces[::2]]
        pieces[::2] = [self._any.sub(lambda found: self._names[found[0]], piece) for piece in pieces[::2]]
        return self._tokenizer.encode("".join(pieces), add_special_tokens=False).ids


class _Texts:
    """Replaces the texts of a conversation by placeholders, but not the whitespace around them, so that a template that
    trims texts still does."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._secret = secrets.token_hex(16)  # a new one for each conversation: a template can show it in an error

    def replace(self, messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Texts without an image in between become one part, as in training."""
        return [{**message, "content": self._content(message["content"])} for message in messages]

    def _content(self, content: Any) -> Any:
        if isinstance(content, str):
            return self._placeholder(content)
        parts: list[dict[str, Any]] = []
        for part in content:
            if part["type"] == "text" and parts and parts[-1]["type"] == "text":
                parts[-1] = {"type": "text", "text": parts[-1]["text"] + part["text"]}
            else:
                parts.append(part)
        return [{**part, "text": self._placeholder(part["text"])} if part["type"] == "text" else part for part in parts]

    def _placeholder(self, text: str) -> str:
        text = text.encode(errors="replace").decode()  # tokenizers reject lone surrogates
        inner = text.strip()
        if not inner:
            return text
        self._texts.append(inner)
        before, _, after = text.partition(inner)
        return f"{before}x{self._secret}t{len(self._texts) - 1}x{after}"

    def split(self, rendered: str) -> list[str]:
        """Returns the template's own text and the conversation's texts, alternately."""
        pieces = re.split(f"x{self._secret}t([0-9]+)x", rendered)
        pieces[1::2] = [self._texts[int(index)] for index in pieces[1::2]]
        if any(self._secret in piece.lower() for piece in pieces[::2]):
            raise PlainTextError("the chat template alters the texts of the conversation")
        return pieces


def _renamed(tokenizer: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """Returns the JSON of a tokenizer whose control tokens have other names, which normalisation leaves unchanged."""
    model = tokenizer["model"]
    for token in tokenizer["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(token, token): id for token, id in model["vocab"].items()}
    else:  # a Unigram model
        model["vocab"] = [[names.get(token, token), score] for token, score in model["vocab"]]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if merges := model.get("merges"):
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
        model["merges"] = [pair for pair in pairs if not names.keys() & {*pair, "".join(pair)}]
    if model.get("dropout"):
        model["dropout"] = None
    return {**tokenizer, "model": model, "truncation": None, "padding": None, "post_processor": None}
