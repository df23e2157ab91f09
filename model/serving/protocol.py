"""Request and response types for the supported subset of OpenAI's chat completions.

Source: the API reference at https://platform.openai.com/docs/api-reference/chat and the types of the `openai` package.
"""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from model.serving.errors import RequestError
from model.serving.parameters import refuse_unsupported

INT64 = 2**63


class ImageUrl(BaseModel):
    """An image URL. `detail` is ignored, because the model has a fixed image size."""

    url: str


class Part(BaseModel):
    """A part of a message's content."""

    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: ImageUrl | None = None

    @model_validator(mode="after")
    def _whole(self) -> "Part":
        if getattr(self, self.type) is None:
            raise ValueError(f"a part of type {self.type} must have the field {self.type}")
        return self


class Message(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    role: Literal["system", "user", "assistant"]  # OpenAI's newer role `developer` is an alias of `system`
    content: list[Part]

    @field_validator("role", mode="before")
    @classmethod
    def _role(cls, role: Any) -> Any:
        return "system" if role == "developer" else role

    @field_validator("content", mode="before")
    @classmethod
    def _parts(cls, content: Any) -> Any:
        if isinstance(content, str):
            return [{"type": "text", "text": content}]
        if not isinstance(content, list) or not content:
            raise ValueError("must be a string or a non-empty list of parts")
        return content


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True)

    include_usage: bool | None = None


class ChatRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    model: str
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    stop: list[str] | None = Field(None, max_length=4)
    seed: int | None = Field(None, ge=-INT64, lt=INT64)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _stops(cls, stop: Any) -> Any:
        return [stop] if isinstance(stop, str) else stop

    @field_validator("stop")
    @classmethod
    def _no_empty_stop(cls, stop: list[str] | None) -> list[str] | None:
        if stop and "" in stop:
            raise ValueError("stop strings must not be empty")
        return stop

    @property
    def longest(self) -> int | None:
        """Maximum number of tokens in the answer, or None if the request does not specify it."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


def parse(body: bytes | bytearray) -> ChatRequest:
    """Parses and validates a request. Raises RequestError (400), naming the field, if it is invalid or unsupported."""
    try:
        request = ChatRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        param = field_name(first["loc"])
        problem = first["msg"].removeprefix("Value error, ")
        raise RequestError(400, f"{param}: {problem}" if param else problem, param, "invalid_value") from None
    refuse_unsupported(request.model_extra or {}, "")
    for index, message in enumerate(request.messages):
        refuse_unsupported(message.model_extra or {}, f"messages[{index}].")
    limits = {request.max_tokens, request.max_completion_tokens} - {None}
    if len(limits) > 1:
        raise RequestError(400, "set max_tokens or max_completion_tokens, not both", "max_tokens", "invalid_value")
    options = request.stream_options
    if options is not None and options.include_usage and not request.stream:
        raise RequestError(400, "stream_options requires stream: true", "stream_options", "invalid_value")
    return request


def field_name(loc: Sequence[str | int]) -> str | None:
    """Converts a pydantic location such as ("messages", 0, "role") to `messages[0].role`; None for the whole body."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).removeprefix(".") or None


class Usage(BaseModel):
    """Token counts. The prompt's count includes visual tokens, the completion's count its end token."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


def usage(prompt: int, completion: int) -> Usage:
    return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


class AnswerMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    index: int = 0
    message: AnswerMessage
    logprobs: None = None
    finish_reason: Literal["stop", "length"]


class Completion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class Delta(BaseModel):
    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(BaseModel):
    index: int = 0
    delta: Delta
    logprobs: None = None
    finish_reason: Literal["stop", "length"] | None = None


class Chunk(BaseModel):
    """A piece of a streamed answer; the last chunk has no choices if it contains the usage."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
