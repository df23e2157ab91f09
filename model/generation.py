"""Answers to several prompts in one batch, each given out token by token and ended by its own rules."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from model.configuration import HoneybeeConfig
from model.directory import ModelError, check_model
from model.modeling import HoneybeeForConditionalGeneration
from model.processing import HoneybeeProcessor
from model.sampling import RowSampler, Sampling
from model.text_stream import Detokenizer, StopStrings


@dataclass(frozen=True)
class End:
    """How an answer ended: `stop` (the model's end token or a stop string), `length`, or `cancelled`. tokens: how many
    were generated, the end token among them."""

    reason: Literal["stop", "length", "cancelled"]
    tokens: int


Progress = str | End | Exception  # an answer is pieces of text and then one of the others


@dataclass
class Row:
    """One prompt of a batch.

    input_ids: as `encode` gives them. pixels: (n, 3, S, S), its pictures in order; None for none. report: is called
    from the generating thread. cancelled: set by whoever no longer wants the answer.
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
        """Reports the end, once."""
        if not self.ended:
            self.ended = True
            self.report(how)


def load(
    directory: Path | str, device: str = "auto", dtype: torch.dtype | str = "auto"
) -> tuple[HoneybeeForConditionalGeneration, HoneybeeProcessor]:
    """A saved model with its processor. dtype: "auto" is as it was saved. Raises ModelError, naming the directory."""
    check_model(Path(directory))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        processor = HoneybeeProcessor.from_pretrained(directory)
        processor.check_model(HoneybeeConfig.from_pretrained(directory))  # before the weights: they take long
        model = HoneybeeForConditionalGeneration.from_pretrained(directory, dtype=dtype)
    except Exception as error:  # transformers raises anything for files that are not as it wrote them
        what = str(error) if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {error}"
        raise ModelError(f"the model in {directory} cannot be loaded: {what}") from error
    return model.to(device).eval(), processor


def encode(processor: HoneybeeProcessor, messages: Sequence[Any]) -> list[int]:
    """A conversation in the form of chat templates → the token ids of its prompt, M image tokens an image.

    Texts must not hold the image token. Raises jinja2.TemplateError where the template refuses the conversation.
    """
    text = processor.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
    text = text.replace(processor.image_token, processor.image_token * processor.num_image_tokens)
    return processor.tokenizer(text, add_special_tokens=False)["input_ids"]


def left_padded(prompts: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask of a batch, (B, T) each: prompts end together, so that answers begin together."""
    width = max(map(len, prompts))
    input_ids = torch.full((len(prompts), width), pad)
    mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        input_ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    return input_ids, mask


def context_of(model: HoneybeeForConditionalGeneration) -> int | None:
    """How many tokens a prompt and its answer may have together; None where the language model sets no limit."""
    return getattr(model.config.text_config, "max_position_embeddings", None)


def generate(model: Any, processor: HoneybeeProcessor, rows: Sequence[Row]) -> None:
    """Answers all rows in one batch, padded on the left; reports to each as its answer grows and when it ends.

    A row that ends, or is cancelled, frees nothing until the longest answer of the batch is there, but is told at once.
    Raises whatever the model raises; then rows without an end were not reported one.
    """
    tokenizer = processor.tokenizer
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    input_ids, mask = left_padded([row.input_ids for row in rows], pad)
    pixels = [row.pixels for row in rows if row.pixels is not None]
    model.generate(
        input_ids=input_ids.to(model.device),
        attention_mask=mask.to(model.device),
        pixel_values=torch.cat(pixels).to(model.device) if pixels else None,
        max_new_tokens=max(row.max_new_tokens for row in rows),
        do_sample=False,  # RowSampler does it
        num_beams=1,
        repetition_penalty=1.0,
        pad_token_id=pad,
        logits_processor=LogitsProcessorList([RowSampler([row.sampling for row in rows])]),
        stopping_criteria=StoppingCriteriaList([_Reporter(rows, tokenizer, _end_tokens(model, tokenizer))]),
    )


def _end_tokens(model: Any, tokenizer: Any) -> set[int]:
    own = model.generation_config.eos_token_id
    return {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}


class _Reporter(StoppingCriteria):
    """Sees every new token, and says which rows are done."""

    def __init__(self, rows: Sequence[Row], tokenizer: Any, end_tokens: set[int]):
        self._answers = [_Answer(row, tokenizer, end_tokens) for row in rows]

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        """input_ids: (B, T), the new tokens in the last column → (B,), which rows are done."""
        for answer, token in zip(self._answers, input_ids[:, -1].tolist(), strict=True):
            answer.take(token)
        return torch.tensor([answer.row.ended for answer in self._answers], device=input_ids.device)


class _Answer:
    """The growing answer of one row."""

    def __init__(self, row: Row, tokenizer: Any, end_tokens: set[int]):
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
            ended = ended or self._stops.found  # in a last character that was not whole
            if piece := self._stops.end():
                row.report(piece)
            row.finish(End("stop" if ended else "length", self._count))

    def _give(self, piece: str) -> None:
        if piece := self._stops.push(piece):
            self.row.report(piece)
