"""A conversation with a trained model about one picture."""

from pathlib import Path

import torch
from PIL import Image

from model.modeling import HoneybeeForConditionalGeneration
from model.processing import HoneybeeProcessor


class ChatError(ValueError):
    """A question or a model that cannot be used."""


class Chat:
    """Remembers the turns so far; answers greedily."""

    def __init__(self, model: Path, image: Path, max_new_tokens: int = 256):
        """Raises ChatError for a directory without a model, OSError for a file that is no image."""
        if not (model / "config.json").is_file():
            raise ChatError(f"there is no model (no config.json) in {model}: give a run's model directory")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = HoneybeeForConditionalGeneration.from_pretrained(model).to(device).eval()
        self.processor = HoneybeeProcessor.from_pretrained(model)
        with Image.open(image) as opened:
            self.image = opened.convert("RGB")
        self.max_new_tokens = max_new_tokens
        self.messages: list[dict] = []

    @torch.inference_mode()
    def ask(self, question: str) -> str:
        """The answer to the next turn. Raises ChatError for a question that is empty or contains the image token."""
        if self.processor.image_token in question:
            raise ChatError(f"the question contains {self.processor.image_token}; the picture is already there")
        if not question.strip():
            raise ChatError("the question is empty")
        head = [] if self.messages else [{"type": "image"}]
        self.messages.append({"role": "user", "content": [*head, {"type": "text", "text": question}]})
        text = self.processor.apply_chat_template(self.messages, add_generation_prompt=True, tokenize=False)
        inputs = self.processor(text=[text], images=[self.image], return_tensors="pt").to(self.model.device)
        output = self.model.generate(**inputs, do_sample=False, max_new_tokens=self.max_new_tokens)
        answer = self.processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        self.messages.append({"role": "assistant", "content": [{"type": "text", "text": answer.strip()}]})
        return answer.strip()
