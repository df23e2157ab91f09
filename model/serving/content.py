"""Converts the messages of a request to a conversation for the chat template and collects its image references."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from model.serving.errors import RequestError
from model.serving.protocol import Message
from pipelines.schema import IMAGE_TOKEN


@dataclass(frozen=True)
class ImageReference:
    """An image reference in a message. place: field path for errors, such as `messages[0].content[1].image_url`."""

    url: str
    place: str


def conversation(messages: Sequence[Message], max_images: int) -> tuple[list[dict[str, Any]], list[ImageReference]]:
    """Returns the messages in chat-template format and their image references in order.

    Raises RequestError (400) if the last message is empty or not from the user, a text contains the image token, an
    image is not in a user message, or there are too many images.
    """
    turns: list[dict[str, Any]] = []
    references: list[ImageReference] = []
    for message_index, message in enumerate(messages):
        parts: list[dict[str, str]] = []
        for part_index, part in enumerate(message.content):
            place = f"messages[{message_index}].content[{part_index}]"
            if part.image_url is not None and part.type == "image_url":
                if message.role != "user":
                    raise _invalid(f"images are allowed only in user messages, not in {message.role} messages", place)
                references.append(ImageReference(part.image_url.url, f"{place}.image_url"))
                parts.append({"type": "image"})
            else:
                text = part.text or ""
                joined = bool(parts) and parts[-1]["type"] == "text"
                if IMAGE_TOKEN in (parts[-1]["text"] if joined else "") + text:  # also if it is in neither part
                    raise _invalid(f"the text contains {IMAGE_TOKEN}: send images as separate parts", place)
                if joined:
                    parts[-1]["text"] += text
                else:
                    parts.append({"type": "text", "text": text})
        turns.append({"role": message.role, "content": parts})
    last = f"messages[{len(messages) - 1}]"
    if messages[-1].role != "user":
        raise _invalid(f"the role of the last message must be user, not {messages[-1].role}", f"{last}.role")
    if not any(part["type"] == "image" or part["text"].strip() for part in turns[-1]["content"]):
        raise _invalid("the last message is empty", f"{last}.content")
    if len(references) > max_images:
        raise _invalid(f"the request has {len(references)} images, but at most {max_images} are allowed", "messages")
    return turns, references


def _invalid(message: str, place: str) -> RequestError:
    return RequestError(400, f"{place}: {message}", place, "invalid_value")
