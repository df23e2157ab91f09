"""Shrinks images for shards, since a model with an input of 336 pixels needs fewer bytes than the originals hold."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, features
from PIL import __version__ as pillow

from pipelines.images.decode import decode, header_size, to_rgb

QUALITY = 90  # of the JPEG, which is written without chroma subsampling (4:4:4)


@dataclass(frozen=True)
class Shrink:
    """Converts images whose longer side exceeds `side` pixels to JPEGs of that side, upright and without alpha. All
    other images keep their bytes."""

    side: int

    def facts(self) -> dict[str, object]:
        """Returns everything that the output bytes depend on."""
        encoder = f"Pillow {pillow}, libjpeg {features.version('jpg')}"
        return {"side": self.side, "quality": QUALITY, "encoder": encoder}

    def expected_bytes(self, num_bytes: np.ndarray, side: np.ndarray) -> np.ndarray:
        """Estimates the size in bytes of shrunk images. num_bytes, side (the longer one): (n,) int64 → (n,) int64."""
        scale = np.minimum(1.0, self.side / np.maximum(side, 1))
        return np.rint(num_bytes * scale**2).astype(np.int64)

    def __call__(self, data: bytes) -> bytes:
        """Returns the bytes of the shrunk image. Raises as `pipelines.images.decode.decode`."""
        if max(header_size(data)) <= self.side:
            return data
        image = to_rgb(decode(data))
        scale = self.side / max(image.size)
        width, height = (max(1, round(length * scale)) for length in image.size)
        stream = io.BytesIO()
        small = image.resize((width, height), Image.Resampling.LANCZOS)
        small.save(stream, "JPEG", quality=QUALITY, subsampling="4:4:4", optimize=True)
        return stream.getvalue()
