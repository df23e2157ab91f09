"""Pictures made smaller for shards: fewer bytes to keep and to decode than a model that sees 336 pixels needs."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, features
from PIL import __version__ as pillow

from pipelines.images import FORMATS, decode, to_rgb

QUALITY = 90  # of the JPEG, whose colours are kept at full resolution (4:4:4)


@dataclass(frozen=True)
class Shrink:
    """Pictures whose longer side has more than `side` pixels become JPEGs of that side, upright and without alpha;
    all others keep their bytes."""

    side: int

    def facts(self) -> dict[str, object]:
        """All that the bytes depend on."""
        encoder = f"Pillow {pillow}, libjpeg {features.version('jpg')}"
        return {"side": self.side, "quality": QUALITY, "encoder": encoder}

    def expected_bytes(self, num_bytes: np.ndarray, side: np.ndarray) -> np.ndarray:
        """(n,) int64 → (n,) int64: about what is left of pictures of so many bytes and pixels of the longer side."""
        scale = np.minimum(1.0, self.side / np.maximum(side, 1))
        return np.rint(num_bytes * scale**2).astype(np.int64)

    def __call__(self, data: bytes) -> bytes:
        """Raises as `pipelines.images.decode`."""
        with Image.open(io.BytesIO(data), formats=FORMATS) as header:
            if max(header.size) <= self.side:
                return data
        picture = to_rgb(decode(data))
        scale = self.side / max(picture.size)
        width, height = (max(1, round(length * scale)) for length in picture.size)
        stream = io.BytesIO()
        small = picture.resize((width, height), Image.Resampling.LANCZOS)
        small.save(stream, "JPEG", quality=QUALITY, subsampling="4:4:4", optimize=True)
        return stream.getvalue()
