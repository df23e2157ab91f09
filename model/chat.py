"""Talk with a trained model about pictures; answers come piece by piece."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Event, Thread
from typing import Any

import torch
from PIL import Image
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from model import HoneybeeForConditionalGeneration, HoneybeeProcessor
from model.pretrained import IMAGE_TOKEN

Picture = Image.Image | str | Path


class _Stopped(StoppingCriteria):
    """Ends generation when nobody reads the answer any more."""

    def __init__(self) -> None:
        self.event = Event()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:  # type: ignore[override]
        return torch.full((len(input_ids),), self.event.is_set(), device=input_ids.device)


class Chat:
    """A conversation; every question sees the pictures and turns before it.

    messages: the conversation so far, in the form of chat templates; may be set to a history, or emptied.
    """

    def __init__(self, model: HoneybeeForConditionalGeneration, processor: HoneybeeProcessor):
        self.model, self.processor = model, processor
        self.messages: list[dict[str, Any]] = []

    @classmethod
    def load(cls, model_dir: Path | str, device: str = "auto", dtype: torch.dtype | str = "auto") -> "Chat":
        """model_dir: a saved model with its processor. dtype: "auto" is as it was saved."""
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        model = HoneybeeForConditionalGeneration.from_pretrained(model_dir, dtype=dtype).to(device)
        return cls(model, HoneybeeProcessor.from_pretrained(model_dir))

    def ask(
        self,
        question: str,
        images: Sequence[Picture] = (),
        max_new_tokens: int = 512,
        temperature: float = 0.0,
    ) -> Iterator[str]:
        """Yields the answer in pieces as they are generated, and then adds the turn to `messages`.

        images: new in this turn, Pillow images or local files. temperature: 0 is greedy. A reader that stops early
        ends the generation; what it read becomes the turn. Raises ValueError for an image that cannot be read and for
        a question that holds the image token, and whatever generation raises; then no turn is added.
        """
        if IMAGE_TOKEN in question:
            raise ValueError(f"the question holds {IMAGE_TOKEN}, which is the model's own: give images beside the text")
        pictures = [{"type": "image", "image": self.processor.image_processor.fetch_images(image)} for image in images]
        user = {"role": "user", "content": [*pictures, {"type": "text", "text": question}]}
        inputs: Any = self.processor.apply_chat_template(
            [*self.messages, user],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        return self._stream(user, inputs.to(self.model.device), max_new_tokens, temperature)

    def _stream(self, user: dict[str, Any], inputs: Any, max_new_tokens: int, temperature: float) -> Iterator[str]:
        streamer = TextIteratorStreamer(self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        model: Any = self.model
        stopped, failures = _Stopped(), []
        sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}

        def generate() -> None:
            try:
                model.generate(
                    **inputs,
                    **sampling,
                    max_new_tokens=max_new_tokens,
                    streamer=streamer,
                    stopping_criteria=StoppingCriteriaList([stopped]),
                )
            except BaseException as error:  # raised again below, in the reader's thread
                failures.append(error)
                streamer.on_finalized_text("", stream_end=True)

        thread = Thread(target=generate, daemon=True)
        thread.start()
        answer = ""
        try:
            for piece in streamer:
                piece = piece if answer else piece.lstrip()  # the template puts a space before an answer
                if piece:
                    answer += piece
                    yield piece
        finally:
            stopped.event.set()
            thread.join()
            if not failures:
                turn = {"role": "assistant", "content": [{"type": "text", "text": answer.strip()}]}
                self.messages += [user, turn]
        if failures:
            raise failures[0]


def chat(
    model_dir: Path | str,
    images: Sequence[Picture],
    question: str,
    device: str = "auto",
    max_new_tokens: int = 512,
    temperature: float = 0.0,
) -> Iterator[str]:
    """Loads a model and streams its answer to one question about some images; see Chat for conversations."""
    yield from Chat.load(model_dir, device).ask(question, images, max_new_tokens, temperature)
