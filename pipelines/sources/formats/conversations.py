"""Parses conversations in the layouts of LLaVA, ShareGPT and other trainers, and finds the positions of their images.

A message is `{from: human, value: …}` or `{role: user, content: …}`, where content is a text or a list of parts
(`{type: text, text: …}`, `{type: image}`). One object may also hold question and answer: `{user: …, assistant: …}`.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from pipelines.schema import IMAGE_TOKEN
from pipelines.sources.fields import Reject, clean, field, show, text

ROLES = (("human", "user"), ("gpt", "assistant"))

Turns = list[tuple[str, str]]


def turns(record: Any, name: str = "conversations") -> Turns:
    """Returns the (user, assistant) texts of the messages in record[name], in order, at least one pair.

    Rejects: empty_conversation, odd_turns, wrong_role, system_message, empty_question, empty_answer, missing_field,
    wrong_type, not_utf8.
    """
    messages = field(record, name, list)
    if not messages:
        raise Reject("empty_conversation", f"{name} is []")
    texts: list[str] = []
    for i, message in enumerate(messages):
        where = f"{name}[{i}]."
        for role, key in _texts_of(message, where):
            if role == "system":  # the chat style brings its own system message
                raise Reject("system_message", f"{where}{key} has the role 'system'")
            expected = ROLES[len(texts) % 2]
            if role not in expected:
                raise Reject("wrong_role", f"{where}{key} has the role {show(role)}, not {expected[0]!r}")
            texts.append(_text(message, key, "empty_answer" if len(texts) % 2 else "empty_question", where))
    if len(texts) % 2:
        raise Reject("odd_turns", f"{name} has {len(texts)} messages: the last question has no answer")
    return list(zip(texts[::2], texts[1::2], strict=True))


def _texts_of(message: Any, where: str) -> Iterator[tuple[str, str]]:
    """Yields (role, name of the text field) for each text of a message."""
    if type(message) is dict and {"user", "assistant"} <= set(message):
        yield from (("user", "user"), ("assistant", "assistant"))
    elif type(message) is dict and "role" in message:
        yield field(message, "role", str, where), "content"
    else:
        yield field(message, "from", str, where), "value"


def _text(message: dict[str, Any], key: str, empty: str, where: str) -> str:
    parts = message.get(key)
    if type(parts) is not list:
        return text(message, key, empty, where)
    pieces = []
    for i, part in enumerate(parts):
        inside = f"{where}{key}[{i}]."
        kind = field(part, "type", str, inside)
        if kind not in ("text", "image"):
            raise Reject("wrong_type", f"{inside}type is {show(kind)}, neither 'text' nor 'image'")
        pieces.append(IMAGE_TOKEN if kind == "image" else field(part, "text", str, inside))
    return clean(f"{where}{key}", "".join(pieces), empty)


def place_images(images: Sequence[str], talk: Turns) -> tuple[str | None, Turns, list[str] | None]:
    """Returns a row of the conversation task: its first image, its turns, and its other images or None.

    The images precede the conversation unless the questions contain one `<image>` placeholder per image, which then
    marks its position. A single placeholder at the beginning or end of the first question counts as the default
    position and is removed. Rejects: missing_field, image_count_mismatch, empty_question.
    """
    placeholders = sum(question.count(IMAGE_TOKEN) for question, _ in talk)
    if placeholders and not images:
        raise Reject("missing_field", f"image is missing, but the questions contain {placeholders} {IMAGE_TOKEN}")
    if placeholders not in (0, len(images)):
        raise Reject(
            "image_count_mismatch", f"the questions contain {placeholders} {IMAGE_TOKEN} for {len(images)} images"
        )
    if placeholders == 1:
        (question, answer), *rest = talk
        talk = [(without_placeholder(question)[0], answer), *rest]
    return (images[0] if images else None), talk, (list(images[1:]) or None)


def without_placeholder(question: str) -> tuple[str, bool]:
    """Returns a first question without the `<image>` at its beginning or end, and whether there was one.
    Rejects: empty_question."""
    rest = question.removeprefix(IMAGE_TOKEN)
    if rest == question:
        rest = question.removesuffix(IMAGE_TOKEN)
    if rest == question:
        return question, False
    return clean(f"the first question without {IMAGE_TOKEN}", rest, "empty_question"), True
