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


@dataclass(frozen=True)
class End:
    """The reason why an answer ended: `stop` (the model's end token or a stop string), `length` or `cancelled`.
    tokens: the number of generated tokens, including the end token."""

    reason: Literal["stop", "length", "cancelled"]
    tokens: int


Progress = str | End | Exception  # an answer consists of pieces of text, followed by one End or Exception


@dataclass
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
    ended: bool = False

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


def encode(processor: HoneybeeProcessor, messages: Sequence[Any]) -> list[int]:
    """Returns the prompt's token ids for a conversation in chat-template format, with M image tokens per image.

    Texts must not contain the image token. Raises jinja2.TemplateError if the template rejects the conversation.
    """
    text = processor.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
    text = text.replace(processor.image_token, processor.image_token * processor.num_image_tokens)
    return processor.tokenizer(text, add_special_tokens=False)["input_ids"]


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
    complete. Exceptions of the model propagate; unfinished rows then receive no End.
    """
    tokenizer = processor.tokenizer
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    input_ids, mask = pad_left([row.input_ids for row in rows], pad)
    pixels = [row.pixels for row in rows if row.pixels is not None]
    model.generate(
        input_ids=input_ids.to(model.device),
        attention_mask=mask.to(model.device),
        pixel_values=torch.cat(pixels).to(model.device) if pixels else None,
        max_new_tokens=max(row.max_new_tokens for row in rows),
        do_sample=False,  # RowSampler samples
        num_beams=1,
        repetition_penalty=1.0,
        pad_token_id=pad,
        logits_processor=LogitsProcessorList([PerRowSampler([row.sampling for row in rows])]),
        stopping_criteria=StoppingCriteriaList([_Reporter(rows, tokenizer, _end_tokens(model, tokenizer))]),
    )


def _end_tokens(model: Any, tokenizer: Any) -> set[int]:
    own = model.generation_config.eos_token_id
    return {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}


class _Reporter(StoppingCriteria):
    """Passes each new token to its row's answer and tells `generate` which rows are done."""

    def __init__(self, rows: Sequence[PromptRow], tokenizer: Any, end_tokens: set[int]):
        self._answers = [_Answer(row, tokenizer, end_tokens) for row in rows]

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        """input_ids: (B, T) with the new tokens in the last column → (B,), True for rows that are done."""
        for answer, token in zip(self._answers, input_ids[:, -1].tolist(), strict=True):
            answer.take(token)
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
                row.report(piece)
            row.finish(End("stop" if ended else "length", self._count))

    def _give(self, piece: str) -> None:
        if piece := self._stops.push(piece):
            self.row.report(piece)
