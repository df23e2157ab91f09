"""Chat styles: Jinja chat templates under templates/chat, which transformers uses unchanged at inference.

A style is rendered a few times with placeholders for the texts to learn what it prints around them. Rendering examples
is then plain string concatenation.
"""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pipelines.schema import IMAGE_TOKEN
from pipelines.templates.sets import ROOT

# Private-use characters that mark the start and end of a supervised span, and the brackets of a placeholder.
BEGIN, END, _OPEN, _CLOSE = "\ue000", "\ue001", "\ue002", "\ue003"
_HOLE = re.compile(f"({_OPEN}\\d+{_CLOSE})")


class ChatStyleError(ValueError):
    """A chat style that cannot be used; the message names its file."""


class _Generation(Extension):
    """The block `{% generation %}…{% endgeneration %}`, which marks supervised text as in transformers."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller):
        return f"{BEGIN}{caller()}{END}"


@dataclass(frozen=True)
class TurnFormat:
    """The text around each turn's texts: lead, user text, `middle`, assistant text, `end`; `closing` follows the last
    turn. The supervised text starts `offset` characters into `middle` and ends with `end`."""

    middle: str
    offset: int
    end: str
    closing: str


@dataclass(frozen=True)
class ChatTemplate:
    """A chat style as text, which workers render without opening its file."""

    name: str
    text: str


def load_chat_template(style: str) -> ChatTemplate:
    """Reads templates/chat/<style>.jinja. Raises ChatStyleError listing the styles if there is none of that name."""
    return ChatTemplate(style, chat_style_file(style).read_text(encoding="utf-8"))


def chat_style_file(style: str) -> Path:
    """Returns the Jinja file of a style. Raises ChatStyleError, which lists the available styles, if there is none."""
    path = ROOT / "chat" / f"{style}.jinja"
    if not path.is_file() or path.parent != ROOT / "chat":
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.jinja")))
        raise ChatStyleError(f"no chat style {style!r}: available styles are {known}; to add one, create {path}")
    return path


class ChatStyle:
    """A chat style with one tokenizer's BOS and EOS tokens. Raises ChatStyleError if the style alters texts, formats
    turns after the second one differently, or does not supervise each assistant text and the EOS token after it."""

    def __init__(self, template: ChatTemplate, bos_token: str, eos_token: str):
        self.template = template
        self.path = ROOT / "chat" / f"{template.name}.jinja"  # for messages
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
        )
        try:
            self._template = environment.from_string(template.text)
        except jinja2.TemplateSyntaxError as error:
            raise ChatStyleError(f"{self.path}:{error.lineno}: {error.message}") from None
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self.lead = functools.cache(self._lead)
        self.later = functools.cache(self._later)
        self.wording = self._wording(eos_token)

    def _render(self, images: Sequence[int], texts: Sequence[str]) -> str:
        """images: the number of images before each user text. Further images are where a text contains `<image>`."""
        messages: list[dict] = []
        for i, text in enumerate(texts):
            parts: list[dict] = [{"type": "image"}] * (0 if i % 2 else images[i // 2])
            for piece in re.split(f"({IMAGE_TOKEN})", text):
                if piece:
                    parts.append({"type": "image"} if piece == IMAGE_TOKEN else {"type": "text", "text": piece})
            messages.append({"role": "assistant" if i % 2 else "user", "content": parts})
        return self._template.render(messages=messages, add_generation_prompt=False, **self._tokens)

    def _between(self, *images: int) -> list[str]:
        """Returns what the style prints before, between and after the two texts of each turn."""
        holes = [f"{_OPEN}{i}{_CLOSE}" for i in range(2 * len(images))]
        pieces = _HOLE.split(self._render(images, holes))
        if pieces[1::2] != holes:
            raise ChatStyleError(f"{self.path}: must print each text of a conversation exactly once, in order")
        return pieces[0::2]

    def _wording(self, eos_token: str) -> TurnFormat:
        _, middle, end = self._between(0)
        later = self._between(0, 0)[2]
        supervised, closed, closing = end.partition(END)
        if middle.count(BEGIN) != 1 or END in middle or not closed or not supervised.endswith(eos_token):
            raise ChatStyleError(
                f"{self.path}: each assistant text and the EOS token after it must be inside a generation block"
            )
        if not later.startswith(supervised + END):
            raise ChatStyleError(f"{self.path}: must end every assistant text in the same way")
        wording = TurnFormat(middle.replace(BEGIN, ""), middle.index(BEGIN), supervised, closing)
        probe = [f"  Text {i}, as it is \n" for i in range(6)]
        shown = [text if i % 2 else f"{text}{IMAGE_TOKEN} and{IMAGE_TOKEN}" for i, text in enumerate(probe)]
        rules = "the texts of a conversation unchanged, and all turns after the first in the same way"
        in_place = f"an image that follows a text at its position in the message, as {IMAGE_TOKEN}"
        for images, texts, rule in (
            ((0, 0, 0), probe, rules),
            ((2, 0, 0), probe, rules),
            ((1,), probe[:2], rules),
            ((1, 0, 2), shown, in_place),
        ):
            leads = [self.lead(images[0]), *map(self.later, images[1:])]
            if self._join(leads, wording, texts) != self._render(images, texts).replace(BEGIN, "").replace(END, ""):
                raise ChatStyleError(f"{self.path}: must print {rule}")
        return wording

    def _lead(self, num_images: int) -> str:
        """Returns the text before a conversation's first user text when `num_images` images precede that text."""
        return self._between(num_images)[0]

    def _later(self, num_images: int) -> str:
        """Returns the text before a later user text when `num_images` images precede that text."""
        return self._between(0, num_images)[2].partition(END)[2]

    @staticmethod
    def _join(leads: Sequence[str], wording: TurnFormat, texts: Sequence[str]) -> str:
        turns = zip(leads, texts[::2], texts[1::2], strict=True)
        rendered = (f"{lead}{user}{wording.middle}{answer}{wording.end}" for lead, user, answer in turns)
        return "".join(rendered) + wording.closing
