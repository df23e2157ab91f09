"""Example → token ids and loss mask; the only place where text becomes tokens.

A chat style is a Jinja file under templates/chat, the same text that transformers uses at inference. It is rendered
once per shape (number of images, number of turns) with stand-ins for the texts; examples then only join strings.
"""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pipelines.templates import ROOT
from pipelines.tokenizer import PreparedTokenizer

# Private-use characters: where a supervised span begins and ends, and the stand-ins' brackets.
_BEGIN, _END, _OPEN, _CLOSE = "\ue000", "\ue001", "\ue002", "\ue003"
_HOLE = re.compile(f"{_OPEN}(\\d+){_CLOSE}")


class ChatStyleError(ValueError):
    """A chat style that cannot be used; the message names its file."""


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}`: marks supervised text, as in transformers."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller):
        return f"{_BEGIN}{caller()}{_END}"


@dataclass(frozen=True)
class Segment:
    """A piece of a rendered conversation: literal text, or (hole) the text with that number."""

    text: str
    hole: int | None
    span: int | None  # the number of its generation block; None: not supervised


def chat_style_file(style: str) -> Path:
    """The Jinja file of a style. Raises ChatStyleError naming the known ones."""
    path = ROOT / "chat" / f"{style}.jinja"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.jinja")))
        raise ChatStyleError(f"no chat style {style!r}: the styles are {known}; a new one is {path}")
    return path


class ChatStyle:
    """A rendered-once chat style for one tokenizer's begin and end tokens."""

    def __init__(self, style: str, bos_token: str, eos_token: str):
        self.path = chat_style_file(style)
        self.text = self.path.read_text(encoding="utf-8")
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
        )
        try:
            self._template = environment.from_string(self.text)
        except jinja2.TemplateSyntaxError as error:
            raise ChatStyleError(f"{self.path}:{error.lineno}: {error.message}") from None
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self.segments = functools.cache(self._segments)

    def _render(self, num_images: int, texts: Sequence[str]) -> str:
        messages: list[dict] = []
        for i, text in enumerate(texts):
            parts = [{"type": "text", "text": text}]
            if i == 0:
                parts = [{"type": "image"}] * num_images + parts
            messages.append({"role": "assistant" if i % 2 else "user", "content": parts})
        return self._template.render(messages=messages, add_generation_prompt=False, **self._tokens)

    def _segments(self, num_images: int, num_turns: int) -> tuple[Segment, ...]:
        rendered = self._render(num_images, [f"{_OPEN}{i}{_CLOSE}" for i in range(2 * num_turns)])
        segments = []
        span, count = None, 0
        for piece in re.split(f"({_BEGIN}|{_END}|{_OPEN}\\d+{_CLOSE})", rendered):
            if piece == _BEGIN:
                span, count = count, count + 1
            elif piece == _END:
                span = None
            elif hole := _HOLE.fullmatch(piece):
                segments.append(Segment("", int(hole[1]), span))
            elif piece:
                segments.append(Segment(piece, None, span))
        self._check(tuple(segments), num_images, num_turns)
        return tuple(segments)

    def _check(self, segments: tuple[Segment, ...], num_images: int, num_turns: int) -> None:
        probe = [f"  Text {i}, as it is \n" for i in range(2 * num_turns)]
        joined = "".join(probe[s.hole] if s.hole is not None else s.text for s in segments)
        if joined != self._render(num_images, probe).replace(_BEGIN, "").replace(_END, ""):
            raise ChatStyleError(f"{self.path}: must print the texts of a conversation unchanged")
        answers = [(s.span, s.hole) for s in segments if s.span is not None and s.hole is not None]
        if answers != [(turn, 2 * turn + 1) for turn in range(num_turns)]:
            raise ChatStyleError(f"{self.path}: must print each assistant text once, inside a generation block")


@dataclass(frozen=True)
class Encoded:
    """One example as tokens. `turn_ends`: after each turn's end token, so that a conversation can be split there."""

    input_ids: np.ndarray  # int32 (T,)
    loss_mask: np.ndarray  # bool (T,)
    turn_ends: tuple[int, ...]
    num_images: int
    error: str | None  # why the loss mask is not proved, else None

    @property
    def num_text_tokens(self) -> int:
        return len(self.input_ids) - self.num_images


class Encoder:
    """Encodes conversations in one chat style with one tokenizer."""

    def __init__(self, prepared: PreparedTokenizer, style: str):
        self.prepared = prepared
        self.style = ChatStyle(style, prepared.bos_token, prepared.eos_token)
        self._forbidden = re.compile("|".join(map(re.escape, [*prepared.special_tokens, _BEGIN, _END])))

    def forbidden_text(self, *texts: str) -> str | None:
        """The first special token (the image token among them) that stands in the texts, else None."""
        for text in texts:
            if found := self._forbidden.search(text):
                return found[0]
        return None

    def encode(self, conversations: Sequence[Sequence[str]], num_images: Sequence[int]) -> list[Encoded]:
        """Encodes conversations, each a list of texts (user, assistant, user, …), with so many images before the
        first user text. The whole text is tokenised at once, as at inference."""
        assembled = [self._assemble(texts, images) for texts, images in zip(conversations, num_images, strict=True)]
        encodings = self.prepared.tokenizer.encode_batch([text for text, _ in assembled], add_special_tokens=False)
        encoded = []
        for texts, images, (_, spans), encoding in zip(conversations, num_images, assembled, encodings, strict=True):
            ids = np.array(encoding.ids, dtype=np.int32)
            mask = np.zeros(len(ids), dtype=bool)
            ends: list[int] = []
            token_spans = []
            for begin, end in spans:
                first, last = _token_at(encoding, begin, end), encoding.char_to_token(end - 1)
                if first is None or last is None:
                    token_spans.append(slice(0, 0))
                    ends.append(ends[-1] if ends else 0)
                    continue
                mask[first : last + 1] = True
                token_spans.append(slice(first, last + 1))
                ends.append(last + 1)
            encoded.append(Encoded(ids, mask, tuple(ends), images, self._prove(texts, images, ids, token_spans)))
        return encoded

    @functools.cache  # noqa: B019 (an encoder lives as long as its process)
    def head_tokens(self, num_images: int) -> int:
        """Text tokens before the first turn: the begin token, the system sentence, the image lines."""
        head = []
        for segment in self.style.segments(num_images, 1):
            if segment.hole is not None:
                break
            head.append(segment.text)
        return len(self.prepared.tokenizer.encode("".join(head), add_special_tokens=False).ids) - num_images

    def _assemble(self, texts: Sequence[str], num_images: int) -> tuple[str, list[tuple[int, int]]]:
        pieces, at = [], 0
        spans: list[tuple[int, int]] = []
        for segment in self.style.segments(num_images, len(texts) // 2):
            piece = segment.text if segment.hole is None else texts[segment.hole]
            pieces.append(piece)
            if segment.span is not None:
                begin = at if segment.span == len(spans) else spans.pop()[0]
                spans.append((begin, at + len(piece)))
            at += len(piece)
        return "".join(pieces), spans

    def _prove(self, texts: Sequence[str], images: int, ids: np.ndarray, spans: list[slice]) -> str | None:
        """Promise: the supervised tokens of each turn decode to its answer and end with the end token, and there are
        as many image tokens as images."""
        if int((ids == self.prepared.image_token_id).sum()) != images:
            return f"{(ids == self.prepared.image_token_id).sum()} image tokens for {images} images"
        answers = texts[1::2]
        if len(spans) != len(answers):
            return f"{len(spans)} supervised spans for {len(answers)} answers"
        decoded = self.prepared.tokenizer.decode_batch([ids[s].tolist() for s in spans], skip_special_tokens=False)
        for text, answer in zip(decoded, answers, strict=True):
            ended = text.removesuffix(self.prepared.eos_token)
            if ended == text or ended.strip() != answer.strip():
                return f"supervised tokens decode to {text[:80]!r}, the answer is {answer[:80]!r}"
        return None


def _token_at(encoding, begin: int, end: int) -> int | None:
    """The first token of a span; characters that a tokenizer swallows (a space before a word) have none."""
    for place in range(begin, end):
        token = encoding.char_to_token(place)
        if token is not None:
            return token
    return None
