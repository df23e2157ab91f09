"""A trained model as a function from prompts and pixels to answers: greedy, batched, padded on the left."""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from model.evaluation.base import EvaluationError
from model.modeling import HoneybeeForConditionalGeneration
from model.processing import HoneybeeProcessor
from pipelines.store import MANIFEST

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Generator:
    """A model directory; its weights are loaded when the first answer is needed."""

    def __init__(self, directory: Path, device: str = "auto", precision: str = "auto"):
        """device: auto, cpu or cuda. precision: fp32, bf16, or auto: fp32 on the CPU, bf16 elsewhere."""
        if not directory.is_dir():
            raise EvaluationError(f"{directory}: there is no such model")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if precision == "auto":
            precision = "fp32" if device == "cpu" else "bf16"
        self.directory, self.device, self.precision = directory, device, precision
        self.processor = HoneybeeProcessor.from_pretrained(directory)

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """What answers depend on beside the questions: the model's bytes, how it computes and how it generates."""
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
        """(user text, number of images before it) → token ids in the model's chat style, M image tokens an image.

        Raises EvaluationError for a text that contains the image token.
        """
        processor = self.processor
        for text, _ in prompts:
            if processor.image_token in text:
                raise EvaluationError(f"a prompt contains the image token {processor.image_token}: {text!r}")
        conversations: list[Any] = [
            [{"role": "user", "content": [*[{"type": "image"}] * images, {"type": "text", "text": text}]}]
            for text, images in prompts
        ]
        rendered = processor.apply_chat_template(conversations, add_generation_prompt=True, tokenize=False)
        place = processor.image_token * processor.num_image_tokens
        expanded = [text.replace(processor.image_token, place) for text in rendered]
        return processor.tokenizer(expanded, add_special_tokens=False)["input_ids"]

    @torch.inference_mode()
    def generate(self, prompts: Sequence[list[int]], pixels: Sequence[Tensor], max_new_tokens: int) -> list[str]:
        """Encoded prompts, and their images in the same order, each (3, S, S) → answers, one for each prompt."""
        tokenizer = self.processor.tokenizer
        width = max(map(len, prompts))
        input_ids = torch.full((len(prompts), width), tokenizer.pad_token_id)
        mask = torch.zeros_like(input_ids)
        for row, prompt in enumerate(prompts):
            input_ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
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
        answers = tokenizer.batch_decode(outputs[:, width:], skip_special_tokens=True)
        return [answer.strip() for answer in answers]


class LiveGenerator(Generator):
    """A model that is being trained, as it is at the moment."""

    def __init__(self, model: Any, processor: HoneybeeProcessor, device: torch.device):
        self.processor, self.device = processor, device.type
        self.precision = "fp32" if model.dtype == torch.float32 else "bf16"
        self.model = model
        self.settings = {"model": "in training", "decoding": "greedy", "precision": self.precision}


def _fingerprint(directory: Path) -> str:
    """16 hex digits over the names and bytes of a model directory's files."""
    whole = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        if path.is_file() and path.name != MANIFEST:
            with path.open("rb") as file:
                whole.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()[:16]
