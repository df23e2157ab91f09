"""Chats with a trained model about images and streams its answers."""

from collections.abc import Generator, Sequence
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

import torch
from PIL import Image

from model import HoneybeeForConditionalGeneration, HoneybeeProcessor
from model.generation.generate import End, Progress, PromptRow, context_length, encode, generate, load
from model.generation.sampling import Sampling
from model.processing import open_image

ImageLike = Image.Image | str | Path


class ChatError(ValueError):
    """Raised for a question or an image that cannot be used."""


def load_image(image: ImageLike) -> Image.Image:
    """Opens an image for `ask` and loads its pixels. Raises ChatError for a URL or an unreadable image."""
    try:
        return image if isinstance(image, Image.Image) else open_image(image)
    except ValueError as error:
        raise ChatError(str(error)) from None


class Chat:
    """A conversation; each question is answered with all earlier images and turns as context.

    messages: the conversation so far, in chat-template format. It may be replaced by an existing history or cleared.
    """

    def __init__(self, model: HoneybeeForConditionalGeneration, processor: HoneybeeProcessor):
        self.model, self.processor = model, processor
        self.messages: list[dict[str, Any]] = []

    @classmethod
    def load(cls, model_dir: Path | str, device: str = "auto", dtype: torch.dtype | str = "auto") -> "Chat":
        """Loads a saved model with its processor. dtype: "auto" keeps the saved precision. Raises ModelError."""
        return cls(*load(model_dir, device, dtype))

    def ask(
        self,
        question: str,
        images: Sequence[ImageLike] = (),
        max_new_tokens: int = 512,
        temperature: float = 0.0,
    ) -> Generator[str, None, None]:
        """Yields the answer piece by piece as it is generated, then appends the turn to `messages`.

        images: the images that are new in this turn, as Pillow images or local files. temperature: 0 means greedy. An
        answer is cut off at the end of the model's context. Closing the generator early stops the generation, and the
        text yielded so far becomes the turn. Raises ChatError for an unreadable image, for a question that is empty or
        contains the image token, and for a conversation that leaves no room for an answer; exceptions during generation
        propagate. If an exception is raised, no turn is added.
        """
        token = self.processor.image_token
        if token in question:
            raise ChatError(f"the question contains {token}, which is a reserved token: pass images separately")
        if not question.strip():
            raise ChatError("the question is empty")
        image_parts = [{"type": "image", "image": load_image(image)} for image in images]
        user = {"role": "user", "content": [*image_parts, {"type": "text", "text": question}]}
        messages = [*self.messages, user]
        shown = [part["image"] for message in messages for part in message["content"] if part["type"] == "image"]
        prompt, context = encode(self.processor, messages), context_length(self.model)
        if context is not None and len(prompt) >= context:
            raise ChatError(
                f"the conversation has {len(prompt)} tokens, but the model's context is {context} tokens: "
                "ask a shorter question or start a new conversation"
            )
        answers: SimpleQueue[Progress] = SimpleQueue()
        row = PromptRow(
            prompt,
            self.processor.preprocess(shown) if shown else None,
            max_new_tokens if context is None else min(max_new_tokens, context - len(prompt)),
            answers.put,
            Sampling(temperature),
        )
        return self._stream(user, row, answers)

    def _stream(
        self, user: dict[str, Any], row: PromptRow, answers: "SimpleQueue[Progress]"
    ) -> Generator[str, None, None]:
        def work() -> None:
            try:
                generate(self.model, self.processor, [row])
            except Exception as error:  # re-raised below, in the consumer's thread
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
