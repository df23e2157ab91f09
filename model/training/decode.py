"""Encoded images to pixels."""

import io
from collections.abc import Callable

from PIL import Image
from torch import Tensor

from model.processing import to_rgb


class Decoder:
    """preprocess: n images → (n, 3, S, S)."""

    def __init__(self, preprocess: Callable[[list[Image.Image]], Tensor]):
        self.preprocess = preprocess

    def __call__(self, encoded: list[bytes]) -> tuple[Tensor, list[str | None]]:
        """Images (n, 3, S, S), and for each what was wrong with it; a bad one is black."""
        images: list[Image.Image] = []
        problems: list[str | None] = []
        for data in encoded:
            try:
                image = Image.open(io.BytesIO(data))
                image.load()
                images.append(to_rgb(image))
                problems.append(None)
            except Exception as error:  # decoders of damaged bytes raise anything
                images.append(Image.new("RGB", (1, 1)))
                problems.append(f"an image does not decode: {type(error).__name__}: {error}")
        return self.preprocess(images), problems
