"""Generates answers to several prompts in one batch; each is streamed and has its own stopping conditions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from model.check_directory import ModelError, check_model
from model.configuration import HoneybeeConfig
from model.generation.sampling import PerRowSampler, Sampling
from model.generation.text_stream import Detokenizer, StopStrings
from model.modeling import HoneybeeForConditionalGeneration
from model.processing import HoneybeeProcessor


class PromptError(ValueError):
    """Raised for a prompt that the model cannot answer."""


@dataclass(frozen=True)
class End:
    """The reason why an answer ended: `stop` (the model's end token or a stop string), `length` or `cancelled`.
    tokens: the number of generated tokens, including the end token."""

    reason: Literal["stop", "length", "cancelled"]
    tokens: int


Progress = str | End | Exception  # an answer consists of pieces of text, followed by one End or Exception


@dataclass(eq=False)
class PromptRow:
    """One prompt of a batch.

    input_ids: the result of `encode`. pixels: the images in order, (n, 3, S, S), or None if there are none. report:
    called from the generating thread. cancelled: set by a caller that no longer wants the answer.
    """

    input_ids: Sequence[int]
    pixels: Tensor | None
    max_new_tokens: int
    report: Callable[[Progress], None]
    sampling: Sampling = field(default_factory=Sampling)
    stop: Sequence[str] = ()
    cancelled: Event = field(default_factory=Event)
    started: bool = False
    ended: bool = False

    def give(self, piece: str) -> None:
        """Reports a piece of the answer."""
        self.started = True
        self.report(piece)

    def finish(self, how: End | Exception) -> None:
        """Reports the end of the answer; later calls have no effect."""
        if not self.ended:
            self.ended = True
            self.report(how)


def load(
    directory: Path | str, device: str = "auto", dtype: torch.dtype | str = "auto"
) -> tuple[HoneybeeForConditionalGeneration, HoneybeeProcessor]:
    """Loads a saved model with its processor. dtype: "auto" keeps the saved precision. Raises ModelError, naming the
    directory."""
    check_model(Path(directory))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        processor = HoneybeeProcessor.from_pretrained(directory)
        processor.check_model(HoneybeeConfig.from_pretrained(directory))  # fails fast, before the weights are loaded
        model = HoneybeeForConditionalGeneration.from_pretrained(directory, dtype=dtype)
    except Exception as error:  # transformers raises arbitrary exceptions for corrupt files
        what = str(error) if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {error}"
        raise ModelError(f"the model in {directory} cannot be loaded: {what}") from error
    return model.to(device).eval(), processor


def encode(processor: HoneybeeProcessor, messages: Sequence[Any], answered: bool = False) -> list[int]:
    """Returns the token ids of a conversation in chat-template format, with M image tokens per image.

    Control tokens come from the chat template only: in a text, `</s>` and `<image>` are plain text. answered: the last
    message is an answer; otherwise the model is to answer. Raises PromptError if the template does not print each image
    once, and jinja2.TemplateError if it rejects the conversation.
    """

    def render(conversation: list[dict[str, Any]]) -> str:
        text = processor.apply_chat_template(conversation, add_generation_prompt=not answered, tokenize=False)
        assert isinstance(text, str)
        return text

    per_image = processor.num_image_tokens
    ids = processor.plain_text.encode(messages, render, {processor.image_token: per_image})
    parts = [part for message in messages if not isinstance(message["content"], str) for part in message["content"]]
    _check_image_tokens(ids, processor.image_token_id, sum(part["type"] == "image" for part in parts), per_image)
    return ids


def _check_image_tokens(ids: Sequence[int], image_token: int, images: int, per_image: int) -> None:
    """Raises PromptError if a prompt does not have `per_image` image tokens for each of its images."""
    if (found := list(ids).count(image_token)) != images * per_image:
        raise PromptError(f"found {found} image tokens for {images} images: expected {images * per_image}")


def pad_left(prompts: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Returns token ids and attention mask, (B, T) each, padded on the left so that all answers start at column T."""
    width = max(map(len, prompts))
    input_ids = torch.full((len(prompts), width), pad)
    mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        input_ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    return input_ids, mask


def context_length(model: HoneybeeForConditionalGeneration) -> int | None:
    """Returns the maximum number of tokens of a prompt and its answer together, or None if there is no limit."""
    return getattr(model.config.text_config, "max_position_embeddings", None)


def generate(model: Any, processor: HoneybeeProcessor, rows: Sequence[PromptRow]) -> None:
    """Answers all rows in one left-padded batch and reports each row's text, and its end, as soon as it is known.

    The end of a row is reported immediately, but its memory is freed only when the longest answer of the batch is
    complete. A row that cannot be answered gets its own error, and the others are answered. Exceptions of the model
    propagate; unfinished rows then receive no End.
    """
    rows = [row for row in rows if _is_sound(row, model.config)]
    if not rows:
        return
    tokenizer = processor.tokenizer
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    input_ids, mask = pad_left([row.input_ids for row in rows], pad)
    pixels = [row.pixels for row in rows if row.pixels is not None]
    sampler = PerRowSampler([row.sampling for row in rows])
    model.generate(
        input_ids=input_ids.to(model.device),
        attention_mask=mask.to(model.device),
        pixel_values=torch.cat(pixels).to(model.device) if pixels else None,
        max_new_tokens=max(row.max_new_tokens for row in rows),
        do_sample=False,  # the sampler samples
        num_beams=1,
        repetition_penalty=1.0,
        pad_token_id=pad,
        logits_processor=LogitsProcessorList([sampler]),
        stopping_criteria=StoppingCriteriaList([_Reporter(rows, tokenizer, _end_tokens(model, tokenizer), sampler)]),
    )


def _is_sound(row: PromptRow, config: HoneybeeConfig) -> bool:
    """Checks a row before it is batched, and reports the error of a row that would make its batch fail."""
    images = 0 if row.pixels is None else len(row.pixels)
    try:
        _check_image_tokens(row.input_ids, config.image_token_id, images, config.num_image_tokens)
        shape = (3, config.vision_config.image_size, config.vision_config.image_size)
        if row.pixels is not None and tuple(row.pixels.shape[1:]) != shape:
            raise PromptError(f"the images have the shape {tuple(row.pixels.shape[1:])}: expected {shape}")
        if not 0 <= min(row.input_ids, default=-1) <= max(row.input_ids, default=0) < config.text_config.vocab_size:
            raise PromptError("the prompt is empty or has token ids that the model does not have")
    except PromptError as error:
        row.finish(error)
        return False
    return True


def _end_tokens(model: Any, tokenizer: Any) -> set[int]:
    own = model.generation_config.eos_token_id
    return {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}


class _Reporter(StoppingCriteria):
    """Passes each new token to its row's answer and tells `generate` which rows are done."""

    def __init__(self, rows: Sequence[PromptRow], tokenizer: Any, end_tokens: set[int], sampler: PerRowSampler):
        self._answers = [_Answer(row, tokenizer, end_tokens) for row in rows]
        self._sampler = sampler

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        """input_ids: (B, T) with the new tokens in the last column → (B,), True for rows that are done."""
        for index, (answer, token) in enumerate(zip(self._answers, input_ids[:, -1].tolist(), strict=True)):
            try:
                if failed := self._sampler.errors.get(index):
                    raise failed
                answer.take(token)
            except Exception as error:  # of this row only
                answer.row.finish(error)
        return torch.tensor([answer.row.ended for answer in self._answers], device=input_ids.device)


class _Answer:
    """The growing answer of one row."""

    def __init__(self, row: PromptRow, tokenizer: Any, end_tokens: set[int]):
        self.row, self._end_tokens, self._count = row, end_tokens, 0
        self._text, self._stops = Detokenizer(tokenizer), StopStrings(row.stop)

    def take(self, token: int) -> None:
        row = self.row
        if row.ended:
            return  # the token is padding
        if row.cancelled.is_set():
            row.finish(End("cancelled", self._count))
            return
        self._count += 1
        ended = token in self._end_tokens
        if not ended:
            self._give(self._text.push(token))
            ended = self._stops.found
        if ended or self._count == row.max_new_tokens:
            self._give(self._text.end())
            ended = ended or self._stops.found  # flushing an incomplete last character may complete a stop string
            if piece := self._stops.end():
                row.give(piece)
            row.finish(End("stop" if ended else "length", self._count))

    def _give(self, piece: str) -> None:
        if piece := self._stops.push(piece):
            self.row.give(piece)
