"""Parses conversations in the layouts of chat_layouts.yaml, and finds the positions of their images."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from pipelines.schema import IMAGE_TOKEN
from pipelines.sources.base import Skips
from pipelines.sources.fields import Reject, clean, field, finite, show, utf8
from pipelines.sources.formats.chat_layouts import (
    TABLE,
    Mark,
    check_context,
    is_set,
    normalised,
    one_of,
    part_of,
    role_of,
)

ROLES = ("user", "assistant")

Turns = list[tuple[str, str]]


class _Message(NamedTuple):
    role: str
    text: Any  # str, or another value that is not a text
    marks: list[Mark]  # the images that the text shows
    where: str


class Talk(NamedTuple):
    """A conversation. before, marks, after: the images that the dropped beginning, the kept questions and the dropped
    end show, in order of appearance."""

    turns: Turns
    before: list[Mark]
    marks: list[Mark]
    after: list[Mark]


class Shown(NamedTuple):
    """An image of a row, with the size in pixels for which the row was annotated, if that is known."""

    name: str
    width: float | None = None
    height: float | None = None


def turns(record: Any, name: str = "conversations", skips: Skips | None = None) -> Turns:
    """Returns the turns of `talk`, for a dataset whose texts do not name images. Rejects: those of `talk`, and
    unexpected_image."""
    found = talk(record, name, skips)
    if any(mark is not None for mark in found.marks):
        raise Reject("unexpected_image", f"the questions of {name} name images: {show(found.marks)}")
    return found.turns


def talk(record: Any, name: str = "conversations", skips: Skips | None = None) -> Talk:
    """Returns the turns of the messages in record[name], in order, at least one.

    Answers without a question at the beginning, and questions without an answer at the end, are dropped and counted in
    `skips`. Rejects: empty_conversation, odd_turns, wrong_role, system_message, tool_message, other_media,
    empty_question, empty_answer, ambiguous_fields, image_address, missing_field, wrong_type, not_utf8.
    """
    found = record.get(name) if type(record) is dict else None
    # The older `Sequence` feature of Hugging Face stores a list of messages as an object of lists.
    if type(found) is dict and found and all(type(values) is list for values in found.values()):
        if len({len(values) for values in found.values()}) > 1:
            raise Reject("odd_turns", f"{name} has lists of different lengths: {show(found)}")
        messages = [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]
    else:
        messages = field(record, name, list)
    check_context(record)
    if not messages:
        raise Reject("empty_conversation", f"{name} is []")
    texts = [each for i, message in enumerate(messages) for each in _messages(message, f"{name}[{i}].")]
    first = next((i for i, each in enumerate(texts) if each.role == "user"), len(texts))
    end = len(texts)
    while end > first and (texts[end - 1].role == "user" or _is_blank(texts[end - 1].text)):
        end -= 1
    pairs: Turns = []
    for i, each in enumerate(texts[first:end]):
        if each.role != ROLES[i % 2]:
            raise Reject("wrong_role", f"{each.where} has the role {each.role}, not {ROLES[i % 2]!r}")
        text = clean(each.where, each.text, "empty_answer" if i % 2 else "empty_question")
        if i % 2:
            pairs[-1] = (pairs[-1][0], text)
        else:
            pairs.append((text, ""))
    if not pairs:
        answered = any(each.role == "assistant" for each in texts[first:])
        reason = "wrong_role" if first else "empty_answer" if answered else "odd_turns"
        raise Reject(reason, f"{name} has no question that an answer follows")
    if skips is not None:
        for reason, part in (("leading_answer", texts[:first]), ("unanswered_end", texts[end:])):
            for each in part:
                skips.note(reason, f"{each.where} {show(each.text)}")
    marks = [[mark for each in part for mark in each.marks] for part in (texts[:first], texts[end:])]
    return Talk(pairs, marks[0], [m for each in texts[first:end:2] for m in each.marks], marks[1])


def _messages(message: Any, where: str) -> Iterator[_Message]:
    """Yields the texts of a message, of which system messages without text are omitted."""
    layout = TABLE["message"]
    if type(message) is not dict:
        field(message, "from", str, where)
    role = one_of(message, layout["role"], where)
    if role is None and any(message.get(name) is not None for name in layout["pair"]):
        yield from (_message(speaker, message, key, where) for speaker, key in zip(ROLES, layout["pair"], strict=True))
        return
    if role is None:
        field(message, next((name for name in layout["role"] if name in message), "from"), str, where)
        raise Reject("missing_field", f"{where}from is null")
    speaker = role_of(message[role], f"{where}{role}")
    key = one_of(message, layout["text"], where)
    if key is None:
        key = next((name for name in layout["text"] if name in message), "value" if role == "from" else "content")
    if is_set(message.get("tool_calls")):
        raise Reject("tool_message", f"{where}tool_calls is {show(message['tool_calls'])}")
    each = _message(speaker, message, key, where)
    if speaker == "system":
        if not _is_blank(each.text):  # the chat style brings its own system message
            raise Reject("system_message", f"{where}{key} has the role {message[role]!r}")
        return
    yield each


def _message(role: str, message: dict[str, Any], key: str, where: str) -> _Message:
    value = message.get(key)
    if key not in message:
        field(message, key, str, where)
    if type(value) is str:
        return _Message(role, *normalised(utf8(f"{where}{key}", value)), f"{where}{key}")
    if type(value) is not list:
        return _Message(role, value, [], f"{where}{key}")
    pieces: list[str] = []
    marks: list[Mark] = []
    for i, part in enumerate(value):
        piece = part_of(part, f"{where}{key}[{i}].")
        text, found = normalised(piece) if isinstance(piece, str) else (IMAGE_TOKEN, list(piece))
        pieces.append(text)
        marks += found
    return _Message(role, "".join(pieces), marks, f"{where}{key}")


def _is_blank(text: Any) -> bool:
    return text is None or (type(text) is str and not text.strip())


def sizes(record: dict[str, Any], names: Sequence[str]) -> list[Shown]:
    """Returns the row's images with the sizes in the row. Rejects: wrong_type, bad_number, bad_image_size,
    size_count_mismatch."""
    columns: list[list[float | None]] = []
    for key in ("width", "height"):
        name = one_of(record, TABLE["row"][key])
        value = None if name is None else record[name]
        values = value if type(value) is list else [value]
        if not names or name is None or values == []:
            columns.append([None] * len(names))
            continue
        if len(values) != len(names):
            raise Reject("size_count_mismatch", f"{name} is {show(value)} for {len(names)} images")
        columns.append([None if each is None else _length(name, each) for each in values])
    return [Shown(*each) for each in zip(names, *columns, strict=True)]


def _length(name: str, value: Any) -> float:
    length = finite(name, value)
    if length <= 0:
        raise Reject("bad_image_size", f"{name} is {show(value)}")
    return length


def place_images(images: Sequence[Shown], found: Talk) -> tuple[Any, ...]:
    """Returns a row of the conversation task: its first image, its turns, its other images or None, and the annotated
    sizes of all images or None.

    The images precede the conversation unless the questions contain one `<image>` placeholder per image, which then
    marks its position. A single placeholder at the beginning or end of the first question counts as the default
    position and is removed. Rejects: missing_field, image_count_mismatch, empty_question.
    """
    talk = found.turns
    placeholders = sum(question.count(IMAGE_TOKEN) for question, _ in talk)
    images = _chosen(images, found)
    if placeholders and not images:
        raise Reject("missing_field", f"image is missing, but the questions contain {placeholders} {IMAGE_TOKEN}")
    if placeholders not in (0, len(images)):
        raise Reject(
            "image_count_mismatch", f"the questions contain {placeholders} {IMAGE_TOKEN} for {len(images)} images"
        )
    if placeholders == 1:
        (question, answer), *rest = talk
        talk = [(without_placeholder(question)[0], answer), *rest]
    names, known = [image.name for image in images], any(image.width or image.height for image in images)
    lengths = [length for image in images for length in (image.width, image.height)]
    return names[0] if names else None, talk, names[1:] or None, lengths if known else None


def _chosen(images: Sequence[Shown], found: Talk) -> Sequence[Shown]:
    """Returns the images of the kept turns, in their order in the texts: the row's own, or those that the texts name.
    Rejects: image_count_mismatch."""
    marks = [*found.before, *found.marks, *found.after]
    own = [image.name for image in images]
    if any(isinstance(mark, str) for mark in marks):
        if any(not isinstance(mark, str) for mark in marks) or (own and own != marks):
            raise Reject("image_count_mismatch", f"the texts show the images {show(marks)}, the row has {show(own)}")
        shown = images or [Shown(str(mark)) for mark in marks]
        return shown[len(found.before) : len(shown) - len(found.after)]
    if any(isinstance(mark, int) for mark in marks):
        if sorted(marks, key=str) != sorted(range(1, len(images) + 1), key=str):
            detail = f"the texts show the images number {show(marks)}, the row has {len(images)} images"
            raise Reject("image_count_mismatch", detail)
        return [images[mark - 1] for mark in found.marks if isinstance(mark, int)]
    if len(marks) == len(images) and len(found.marks) < len(marks):
        return images[len(found.before) : len(images) - len(found.after)]
    return images


def without_placeholder(question: str) -> tuple[str, bool]:
    """Returns a first question without the `<image>` at its beginning or end, and whether there was one.
    Rejects: empty_question."""
    rest = question.removeprefix(IMAGE_TOKEN)
    if rest == question:
        rest = question.removesuffix(IMAGE_TOKEN)
    if rest == question:
        return question, False
    return clean(f"the first question without {IMAGE_TOKEN}", rest, "empty_question"), True
