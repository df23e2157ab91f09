"""The messages of a request → a conversation for the chat template, and where its pictures come from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from model.pretrained import IMAGE_TOKEN
from model.serving.errors import RequestError
from model.serving.protocol import Message


@dataclass(frozen=True)
class Reference:
    """A picture that a message names. place: `messages[0].content[1].image_url`, for errors."""

    url: str
    place: str


def conversation(messages: Sequence[Message], max_images: int) -> tuple[list[dict[str, Any]], list[Reference]]:
    """Messages in the form of chat templates, and their pictures in order.

    Raises RequestError (400): the last message is not the user's or is empty, the image token in a text, a picture
    that is not in the user's message, too many pictures.
    """
    turns: list[dict[str, Any]] = []
    references: list[Reference] = []
    for number, message in enumerate(messages):
        parts: list[dict[str, str]] = []
        for index, part in enumerate(message.content):
            place = f"messages[{number}].content[{index}]"
            if part.image_url is not None and part.type == "image_url":
                if message.role != "user":
                    raise _invalid(f"only the user's messages can hold a picture, not the {message.role}'s", place)
                references.append(Reference(part.image_url.url, f"{place}.image_url"))
                parts.append({"type": "image"})
            else:
                text = part.text or ""
                if IMAGE_TOKEN in text:
                    raise _invalid(f"the text holds {IMAGE_TOKEN}: give a picture as a part of its own", place)
                parts.append({"type": "text", "text": text})
        turns.append({"role": message.role, "content": parts})
    last = f"messages[{len(messages) - 1}]"
    if messages[-1].role != "user":
        raise _invalid(f"the last message must be the user's, not the {messages[-1].role}'s", f"{last}.role")
    if not any(part["type"] == "image" or part["text"].strip() for part in turns[-1]["content"]):
        raise _invalid("the last message is empty", f"{last}.content")
    if len(references) > max_images:
        raise _invalid(f"{len(references)} pictures, more than the {max_images} of a request", "messages")
    return turns, references


def _invalid(message: str, place: str) -> RequestError:
    return RequestError(400, f"{place}: {message}", place, "invalid_value")
