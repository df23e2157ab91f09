"""Encoded images to pixel_values, in half the time that Pillow takes (benchmarks/README.md has the figures).

JPEGs are decoded by libjpeg-turbo straight into a buffer of the thread, without the copies that Pillow makes, and torch
resizes them: by the same filter as Pillow, but in vector instructions. Anything unusual about a file (its format,
colours, EXIF, damage) leaves it to Pillow, so what is an image and what is wrong with one is pipelines/images.py's say.
"""

import threading
from collections.abc import Sequence
from typing import Literal

import numpy as np
import simplejpeg
import torch
from torch import Tensor

from model.processing import HoneybeeImageProcessor
from pipelines.images import MAX_BYTES, MAX_PIXELS, decode, orientation, to_rgb

Mode = Literal["exact", "fast"]

MARGIN = 2  # `fast` never decodes to less than this many times S
_KEPT = 16 << 20  # bytes of a thread's buffer: a JPEG of more than four megapixels gets one that is given back
_JPEG = b"\xff\xd8\xff"
_SCAN, _APP1 = 0xDA, 0xE1  # JPEG's markers: where the pixels begin; EXIF or XMP, which alone can turn a picture


class Decoder:
    """Encoded images → (n, 3, S, S), fp32, resized and normalised as HoneybeeImageProcessor.to_tensor does it.

    Against that reference, in steps of 1/255 before normalisation:

    - `exact` differs by at most 2, in fewer than one value of a hundred: on real photos in one of 400, and by 1.
    - `fast` decodes JPEGs of at least 4 S on both sides at 1/2, 1/4 or 1/8, to no less than 2 S. On real photos so
      decoded it differs by 0.4 in the mean and 8 at the 99.9th percentile, PSNR 50 dB. All else is as `exact` has it.

    The result depends on nothing but the bytes: not on threads, the processor's instructions, or the other images.
    Threads may share one.
    """

    def __init__(self, size: tuple[int, int], mean: Sequence[float], std: Sequence[float], mode: Mode = "exact"):
        """size: height and width. mean, std: of each channel, of values from 0 to 1."""
        self.size, self.mode = size, mode
        self._mean = (torch.tensor(mean, dtype=torch.float32) * 255).view(3, 1, 1)
        self._std = (torch.tensor(std, dtype=torch.float32) * 255).view(3, 1, 1)
        self._buffers = threading.local()

    @classmethod
    def like(cls, processor: HoneybeeImageProcessor, mode: Mode = "exact") -> "Decoder":
        """One that gives what `processor` gives."""
        size = (processor.size.height, processor.size.width)
        return cls(size, processor.image_mean, processor.image_std, mode)

    def __call__(self, encoded: Sequence[bytes]) -> tuple[Tensor, list[str | None]]:
        """Images (n, 3, S, S), and for each what was wrong with it, or None; a bad one is black.

        Raises nothing that bytes could be to blame for; MemoryError.
        """
        images = torch.empty(len(encoded), 3, *self.size, dtype=torch.float32)
        problems: list[str | None] = []
        for place, data in zip(images, encoded, strict=True):
            try:
                place.copy_(self._resized(data))
                problems.append(None)
            except MemoryError:
                raise
            except Exception as error:  # decoders of damaged bytes raise anything
                place.zero_()
                problems.append(f"an image does not decode: {type(error).__name__}: {error}")
            place.sub_(self._mean).div_(self._std)  # one by one: an image stays in the cache, a batch does not
        return images, problems

    def _resized(self, data: bytes) -> Tensor:
        """uint8, (3, S, S). Raises whatever a decoder raises."""
        if len(data) > MAX_BYTES:
            raise ValueError(f"image_too_large: {len(data)} bytes, more than {MAX_BYTES}")
        resized = self._jpeg(data)
        return self._resize(np.array(to_rgb(decode(data)))) if resized is None else resized

    def _jpeg(self, data: bytes) -> Tensor | None:
        """As _resized, for a JPEG that nothing is unusual about; None for any other bytes."""
        if not data.startswith(_JPEG):
            return None
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            if colours not in ("YCbCr", "Gray") or height * width > MAX_PIXELS:
                return None
            if _may_be_turned(data) and orientation(data) != 1:
                return None
            part = self._part(height, width)
            rows, columns = -(-height // part), -(-width // part)
            pixels = simplejpeg.decode_jpeg(
                data,
                colorspace="RGBX",  # four bytes a pixel, as torch resizes fastest
                buffer=self._buffer(rows * columns * 4),
                min_height=rows,
                min_width=columns,
                strict=True,
            )
        except MemoryError:
            raise
        # Damaged, or of a kind that it does not know: Pillow may see more in it, or say what is wrong.
        except Exception:
            return None
        return self._resize(pixels, (height / part, width / part) if part > 1 else None)

    def _part(self, height: int, width: int) -> int:
        """What a JPEG's sides are divided by in decoding."""
        if self.mode == "exact":
            return 1
        enough = (side * MARGIN for side in self.size)
        room = min(side // least for side, least in zip((height, width), enough, strict=True))
        return next(part for part in (8, 4, 2, 1) if part <= max(room, 1))

    def _resize(self, pixels: np.ndarray, extent: tuple[float, float] | None = None) -> Tensor:
        """(H, W, 3 or 4) → (3, S, S), bicubic. extent: the height and width that the picture has among the pixels,
        where a scaled JPEG ends inside the last of them."""
        scales = [None, None] if extent is None else [s / e for s, e in zip(self.size, extent, strict=True)]
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        # As F.interpolate(…, antialias=True), which cannot be told the size and the scale both.
        return torch.ops.aten._upsample_bicubic2d_aa(image, self.size, False, *scales)[0, :3]

    def _buffer(self, size: int) -> np.ndarray:
        """At least `size` bytes, the thread's own: fresh memory for every image costs as much as an eighth of it."""
        if size > _KEPT:
            return np.empty(size, np.uint8)
        if not hasattr(self._buffers, "kept") or len(self._buffers.kept) < size:
            self._buffers.kept = np.empty(size, np.uint8)
        return self._buffers.kept


def _may_be_turned(jpeg: bytes) -> bool:
    """Whether what comes before the pixels has EXIF or XMP, or is not one segment after the other."""
    at = len(_JPEG) - 1
    while jpeg[at : at + 1] == b"\xff" and jpeg[at + 1] not in (_SCAN, _APP1):
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    return jpeg[at : at + 2] != bytes((0xFF, _SCAN))
