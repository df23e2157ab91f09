"""Generates answers with a trained model from prompts and pixels: greedy decoding in left-padded batches."""

import functools
import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from model.evaluation.interface import EvaluationError
from model.generation.generate import encode, pad_left
from model.modeling import HoneybeeForConditionalGeneration
from model.processing import HoneybeeProcessor
from pipelines.core.files import named_digests
from pipelines.core.store import MANIFEST

Choices = list[list[int]]  # the token ids of one question's conversation, once with each choice as the answer
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Generator:
    """Generates answers with the model in a directory; the weights are loaded when the first answer is needed."""

    def __init__(self, directory: Path, device: str = "auto", precision: str = "auto"):
        """device: auto, cpu or cuda. precision: fp32, bf16 or auto, which is fp32 on the CPU and bf16 elsewhere.
        Raises EvaluationError if the directory does not exist."""
        if not directory.is_dir():
            raise EvaluationError(f"{directory}: there is no such model directory")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if precision == "auto":
            precision = "fp32" if device == "cpu" else "bf16"
        self.directory, self.device, self.precision = directory, device, precision
        self.processor = HoneybeeProcessor.from_pretrained(directory)

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """Everything but the questions that answers depend on: the model's bytes, the numerics and the decoding."""
        return {
            "model": _fingerprint(self.directory),
            "decoding": "greedy",
            "precision": self.precision,
            "device": self.device,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }

    @functools.cached_property
    def model(self) -> Any:
        model = HoneybeeForConditionalGeneration.from_pretrained(self.directory, dtype=PRECISIONS[self.precision])
        return model.to(self.device).eval()

    def encode(self, prompts: Sequence[tuple[str, int]]) -> list[list[int]]:
        """(user text, number of images before it) → token ids in the model's chat format, M image tokens per image.

        Raises EvaluationError if a text contains the image token.
        """
        return [encode(self.processor, self._messages(*prompt)) for prompt in prompts]

    @torch.inference_mode()
    def generate(self, prompts: Sequence[list[int]], pixels: Sequence[Tensor], max_new_tokens: int) -> list[str]:
        """Encoded prompts and their images in the same order, (3, S, S) each → one answer per prompt."""
        tokenizer = self.processor.tokenizer
        input_ids, mask = pad_left(prompts, tokenizer.pad_token_id)
        outputs = self.model.generate(
            input_ids=input_ids.to(self.device),
            attention_mask=mask.to(self.device),
            pixel_values=torch.stack(list(pixels)).to(self.device) if pixels else None,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        answers = tokenizer.batch_decode(outputs[:, input_ids.shape[1] :], skip_special_tokens=True)
        return [answer.strip() for answer in answers]

    def encode_answers(self, prompts: Sequence[tuple[str, int]], choices: Sequence[Sequence[str]]) -> list[Choices]:
        """Like `encode`, but each prompt is followed by each of its choices as the answer, in the training format."""
        return [
            [encode(self.processor, self._messages(*prompt, choice), answered=True) for choice in own]
            for prompt, own in zip(prompts, choices, strict=True)
        ]

    @torch.inference_mode()
    def likeliest(self, asked: Sequence[Choices], pixels: Sequence[Sequence[Tensor]]) -> list[int]:
        """Returns, for each question, the index of the choice that is likeliest as the complete answer, including the
        end token: by the sum of log-probabilities, not normalised by length.

        asked: token ids of the conversation with each choice as the answer; pixels: each question's images, (3, S, S).
        """
        rows = [row for own in asked for row in own]
        # The prefix that all choices of a question share does not affect their order.
        starts = [_shared(own) for own in asked for _ in own]
        width = max(map(len, rows))
        input_ids = torch.full((len(rows), width), self.processor.tokenizer.pad_token_id)  # padded on the right
        predicting = torch.zeros_like(input_ids, dtype=torch.bool)  # positions whose next token is scored
        for index, (row, start) in enumerate(zip(rows, starts, strict=True)):
            input_ids[index, : len(row)] = torch.tensor(row)
            predicting[index, start - 1 : len(row) - 1] = True
        repeated = [image for own, images in zip(asked, pixels, strict=True) for _ in own for image in images]
        logits = self.model(
            input_ids=input_ids.to(self.device),
            pixel_values=torch.stack(repeated).to(self.device) if repeated else None,
            logits_to_keep=predicting.to(self.device),
            use_cache=False,
        ).logits
        tokens = input_ids.roll(-1, dims=1)[predicting].to(logits.device)
        log_probs = logits.float().log_softmax(-1).gather(1, tokens[:, None])[:, 0]
        row_of = predicting.nonzero()[:, 0].to(logits.device)
        sums = torch.zeros(len(rows), device=logits.device).index_add(0, row_of, log_probs)
        return [int(own.argmax()) for own in sums.split([len(own) for own in asked])]

    def _messages(self, text: str, images: int, answer: str | None = None) -> list[dict[str, Any]]:
        """Returns the messages of a question with its images in front and, if given, its answer. Raises EvaluationError
        if one of the texts contains the image token."""
        for each in (text, answer or ""):
            if self.processor.image_token in each:
                raise EvaluationError(f"a prompt contains the image token {self.processor.image_token}: {each!r}")
        content: list[dict[str, str]] = [*[{"type": "image"}] * images, {"type": "text", "text": text}]
        reply = [] if answer is None else [{"role": "assistant", "content": [{"type": "text", "text": answer}]}]
        return [{"role": "user", "content": content}, *reply]


class LiveGenerator(Generator):
    """Generates answers with a model that is being trained, in its current state."""

    def __init__(self, model: Any, processor: HoneybeeProcessor, device: torch.device):
        self.processor, self.device = processor, device.type
        self.precision = "fp32" if model.dtype == torch.float32 else "bf16"
        self.model = model
        self.settings = {"model": "in training", "decoding": "greedy", "precision": self.precision}


def _shared(rows: Choices) -> int:
    """Returns the length of the longest common prefix of all rows."""
    return sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False)))


def _fingerprint(directory: Path) -> str:
    """Returns 16 hex digits of a hash over the names and bytes of the files in a model directory."""
    files = (path for path in directory.iterdir() if path.is_file() and path.name != MANIFEST)
    lines = [f"{name}\0{digest}\n" for name, digest in named_digests(directory, files).items()]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]
