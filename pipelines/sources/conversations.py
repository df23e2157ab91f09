"""The layout that LLaVA and ShareGPT share: `conversations: [{from: human, value}, {from: gpt, value}, …]`."""

from typing import Any

from pipelines.sources.base import Reject, clean, field, show, text

ROLES = ("human", "gpt")
IMAGE = "<image>"


def turns(record: Any) -> list[tuple[str, str]]:
    """(user, assistant) texts in order, at least one pair.

    Rejects: empty_conversation, odd_turns, wrong_role, empty_question, empty_answer, missing_field, wrong_type,
    not_utf8.
    """
    messages = field(record, "conversations", list)
    if not messages:
        raise Reject("empty_conversation", "conversations is []")
    texts = []
    for i, message in enumerate(messages):
        where = f"conversations[{i}]."
        role = field(message, "from", str, where)
        if role != ROLES[i % 2]:
            raise Reject("wrong_role", f"{where}from is {show(role)}, not {ROLES[i % 2]!r}")
        texts.append(text(message, "value", "empty_answer" if i % 2 else "empty_question", where))
    if len(texts) % 2:
        raise Reject("odd_turns", f"conversations holds {len(texts)} messages: the last question has no answer")
    return list(zip(texts[::2], texts[1::2], strict=True))


def without_placeholder(question: str) -> tuple[str, bool]:
    """A first question without the `<image>` before or after it, and whether there was one. Rejects: empty_question."""
    rest = question.removeprefix(IMAGE)
    if rest == question:
        rest = question.removesuffix(IMAGE)
    if rest == question:
        return question, False
    return clean("conversations[0].value without <image>", rest, "empty_question"), True
