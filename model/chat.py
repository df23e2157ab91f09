"""Talk with a trained model about pictures; answers come piece by piece."""

from collections.abc import Generator, Sequence
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

import torch
from PIL import Image

from model import HoneybeeForConditionalGeneration, HoneybeeProcessor
from model.generation import End, Progress, Row, context_of, encode, generate, load
from model.processing import open_image
from model.sampling import Sampling

Picture = Image.Image | str | Path


class ChatError(ValueError):
    """A question or a picture that cannot be used."""


def open_picture(picture: Picture) -> Image.Image:
    """The picture for `ask`, read whole. Raises ChatError for a URL and for what is no picture that can be read."""
    try:
        return picture if isinstance(picture, Image.Image) else open_image(picture)
    except ValueError as error:
        raise ChatError(str(error)) from None


class Chat:
    """A conversation; every question sees the pictures and turns before it.

    messages: the conversation so far, in the form of chat templates; may be set to a history, or emptied.
    """

    def __init__(self, model: HoneybeeForConditionalGeneration, processor: HoneybeeProcessor):
        self.model, self.processor = model, processor
        self.messages: list[dict[str, Any]] = []

    @classmethod
    def load(cls, model_dir: Path | str, device: str = "auto", dtype: torch.dtype | str = "auto") -> "Chat":
        """model_dir: a saved model with its processor. dtype: "auto" is as it was saved. Raises ModelError."""
        return cls(*load(model_dir, device, dtype))

    def ask(
        self,
        question: str,
        images: Sequence[Picture] = (),
        max_new_tokens: int = 512,
        temperature: float = 0.0,
    ) -> Generator[str, None, None]:
        """Yields the answer in pieces as they are generated, and then adds the turn to `messages`.

        images: new in this turn, Pillow images or local files. temperature: 0 is greedy. The answer ends where the
        model's context ends. A reader that stops early ends the generation; what it read becomes the turn. Raises
        ChatError for an image that cannot be read, for a question that is empty or holds the image token, and for a
        conversation that leaves no room for an answer; and whatever generation raises. Then no turn is added.
        """
        question = question.encode(errors="replace").decode()  # halves of characters, which no tokenizer takes
        token = self.processor.image_token
        if token in question:
            raise ChatError(f"the question holds {token}, which is the model's own: give images beside the text")
        if not question.strip():
            raise ChatError("the question is empty")
        pictures = [{"type": "image", "image": open_picture(image)} for image in images]
        user = {"role": "user", "content": [*pictures, {"type": "text", "text": question}]}
        messages = [*self.messages, user]
        shown = [part["image"] for message in messages for part in message["content"] if part["type"] == "image"]
        prompt, context = encode(self.processor, messages), context_of(self.model)
        if context is not None and len(prompt) >= context:
            raise ChatError(
                f"the conversation has {len(prompt)} tokens and the model's context {context}: "
                "ask something shorter, or begin a new conversation"
            )
        answers: SimpleQueue[Progress] = SimpleQueue()
        row = Row(
            prompt,
            self.processor.preprocess(shown) if shown else None,
            max_new_tokens if context is None else min(max_new_tokens, context - len(prompt)),
            answers.put,
            Sampling(temperature),
        )
        return self._stream(user, row, answers)

    def _stream(self, user: dict[str, Any], row: Row, answers: "SimpleQueue[Progress]") -> Generator[str, None, None]:
        def work() -> None:
            try:
                generate(self.model, self.processor, [row])
            except Exception as error:  # raised again below, in the reader's thread
                row.finish(error)

        thread = Thread(target=work, daemon=True)
        thread.start()
        answer, failure = "", None
        try:
            while not isinstance(progress := answers.get(), End):
                if isinstance(progress, Exception):
                    failure = progress
                    break
                answer += progress
                yield progress
        finally:
            row.cancelled.set()
            thread.join()
            if failure is None:
                turn = {"role": "assistant", "content": [{"type": "text", "text": answer.strip()}]}
                self.messages += [user, turn]
        if failure is not None:
            raise failure
