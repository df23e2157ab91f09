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

from model.image_fit import Fit, bar_colour, bounded, covering, is_extreme, offset, padded
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
      With the fit `pad` the longer side counts, and the parts of a pixel at a bar are none: both its edges divide.

    The result depends on nothing but the bytes: not on threads, the processor's instructions, or the other images.
    Threads may share one.
    """

    def __init__(
        self,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        mode: Mode = "exact",
        fit: Fit = "stretch",
    ):
        """size: height and width. mean, std: of each channel, of values from 0 to 1. fit: see model/image_fit.py."""
        self.size, self.mode, self.fit = size, mode, fit
        self._colour = bar_colour(mean)
        self._mean = (torch.tensor(mean, dtype=torch.float32) * 255).view(3, 1, 1)
        self._std = (torch.tensor(std, dtype=torch.float32) * 255).view(3, 1, 1)
        self._buffers = threading.local()

    @classmethod
    def like(cls, processor: HoneybeeImageProcessor, mode: Mode = "exact") -> "Decoder":
        """One that gives what `processor` gives."""
        size = (processor.size.height, processor.size.width)
        return cls(size, processor.image_mean, processor.image_std, mode, processor.fit)

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
        if resized is not None:
            return resized
        image = bounded(to_rgb(decode(data)), self.size[0], self.fit)
        return self._fitted(np.array(padded(image, self._colour) if self.fit == "pad" else image))

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
            if is_extreme(width, height, self.size[0], self.fit):
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
        return self._fitted(pixels, (height, width), part)

    def _part(self, height: int, width: int) -> int:
        """What a JPEG's sides are divided by in decoding."""
        if self.mode == "exact":
            return 1
        sides, edges = (height, width), [0]
        if self.fit == "pad":
            longer = max(sides)
            edges = [edge for side in sides if side < longer for edge in (offset(longer, side), side)]
            sides = (longer, longer)
        enough = (side * MARGIN for side in self.size)
        room = min(side // least for side, least in zip(sides, enough, strict=True))
        return next(p for p in (8, 4, 2, 1) if p <= max(room, 1) and not any(edge % p for edge in edges))

    def _fitted(self, pixels: np.ndarray, shape: tuple[int, int] | None = None, part: int = 1) -> Tensor:
        """(H, W, 3 or 4) → (3, S, S), bicubic. shape: height and width of the picture, which stands in the pixels at
        1/`part`; None: H and W."""
        height, width = shape or pixels.shape[:2]
        side = self.size[0]
        if self.fit == "crop":
            columns, rows = covering(width, height, side)
            top, left = offset(rows, side), offset(columns, side)
            whole = self._resize(pixels, (rows, columns), (height, width), part)
            return whole[:, top : top + side, left : left + side]
        if self.fit == "pad" and height != width:
            longer = max(height, width)
            top, left = offset(longer, height) // part, offset(longer, width) // part
            canvas = self._canvas(-(-longer // part))
            canvas[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
            return self._resize(canvas, self.size, (longer, longer), part)
        return self._resize(pixels, self.size, (height, width), part)

    def _resize(self, pixels: np.ndarray, size: tuple[int, int], shape: tuple[int, int], part: int) -> Tensor:
        """(H, W, 3 or 4) → (3, *size). A scaled JPEG ends inside its last pixels, at 1/`part` of its shape."""
        scales = [None, None] if part == 1 else [new * part / old for new, old in zip(size, shape, strict=True)]
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        # As F.interpolate(…, antialias=True), which cannot be told the size and the scale both.
        return torch.ops.aten._upsample_bicubic2d_aa(image, size, False, *scales)[0, :3]

    def _canvas(self, side: int) -> np.ndarray:
        """(side, side, 4), all of it the bars' colour."""
        canvas = np.empty((side, side, 4), np.uint8)
        canvas.view(np.uint32).fill(np.array([*self._colour, 255], np.uint8).view(np.uint32)[0])
        return canvas

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
