"""Decodes images to pixel_values in half the time that Pillow takes (see docs/benchmarks.md).

libjpeg-turbo decodes JPEGs straight into a per-thread buffer, without the copies that Pillow makes, and torch resizes
them with the same filter as Pillow but with vector instructions. Any unusual file (by format, colour space, EXIF or
damage) falls back to Pillow, so pipelines/images/table.py alone decides what is an image and what is wrong with one.
"""

import threading
from collections.abc import Sequence
from typing import Literal

import numpy as np
import simplejpeg
import torch
from torch import Tensor

from model.image_fit import Fit, centre_offset, cover_size, is_extreme, limit_size, pad_to_square, padding_colour
from model.processing import HoneybeeImageProcessor
from pipelines.images.decode import MAX_PIXELS, decode, orientation, to_rgb
from pipelines.images.references import MAX_BYTES

Mode = Literal["exact", "fast"]

MARGIN = 2  # `fast` never decodes to less than MARGIN × S
_BUFFER_BYTES = 16 << 20  # of the reusable buffer of a thread; JPEGs above four megapixels get a temporary one
_JPEG = b"\xff\xd8\xff"
_SCAN, _APP1 = 0xDA, 0xE1  # JPEG markers: start of scan; EXIF or XMP, the only segments that can rotate an image


class Decoder:
    """Decodes images to (n, 3, S, S), fp32, resized and normalised like HoneybeeImageProcessor.to_tensor.

    Differences from that reference, in steps of 1/255 before normalisation:

    - `exact` differs by at most 2, in fewer than one value in 100; on real photos by 1, in one value in 400.
    - `fast` decodes JPEGs of at least 4 S on both sides at 1/2, 1/4 or 1/8 scale, to no less than 2 S. On such real
      photos it differs by 0.4 on average and by 8 at the 99.9th percentile (PSNR 50 dB). Other files are as in `exact`.
      With the fit `pad` the longer side counts, and the scale must divide both edges of a bar evenly.

    The result depends only on the bytes: not on threads, the CPU's instruction set, or the other images. A Decoder is
    thread-safe.
    """

    def __init__(
        self,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        mode: Mode = "exact",
        fit: Fit = "stretch",
    ):
        """size: height and width. mean, std: per channel, for values from 0 to 1. fit: see model/image_fit.py."""
        self.size, self.mode, self.fit = size, mode, fit
        self._colour = padding_colour(mean)
        self._mean = (torch.tensor(mean, dtype=torch.float32) * 255).view(3, 1, 1)
        self._std = (torch.tensor(std, dtype=torch.float32) * 255).view(3, 1, 1)
        self._buffers = threading.local()

    @classmethod
    def like(cls, processor: HoneybeeImageProcessor, mode: Mode = "exact") -> "Decoder":
        """Makes a Decoder with the size, normalisation and fit of `processor`."""
        size = (processor.size.height, processor.size.width)
        return cls(size, processor.image_mean, processor.image_std, mode, processor.fit)

    def __call__(self, encoded: Sequence[bytes]) -> tuple[Tensor, list[str | None]]:
        """Returns the images, (n, 3, S, S), and for each its problem or None; an image with a problem is black.

        Raises only MemoryError: invalid bytes never raise.
        """
        images = torch.empty(len(encoded), 3, *self.size, dtype=torch.float32)
        problems: list[str | None] = []
        for image, data in zip(images, encoded, strict=True):
            try:
                image.copy_(self._resized(data))
                problems.append(None)
            except MemoryError:
                raise
            except Exception as error:  # decoders may raise anything on damaged bytes
                image.zero_()
                problems.append(f"an image does not decode: {type(error).__name__}: {error}")
            image.sub_(self._mean).div_(self._std)  # one by one: an image fits the CPU cache, a batch does not
        return images, problems

    def _resized(self, data: bytes) -> Tensor:
        """Returns the resized image, uint8, (3, S, S). Raises whatever a decoder raises."""
        if len(data) > MAX_BYTES:
            raise ValueError(f"image_too_large: {len(data)} bytes, more than {MAX_BYTES}")
        resized = self._jpeg(data)
        if resized is not None:
            return resized
        image = limit_size(to_rgb(decode(data)), self.size[0], self.fit)
        return self._fitted(np.array(pad_to_square(image, self._colour) if self.fit == "pad" else image))

    def _jpeg(self, data: bytes) -> Tensor | None:
        """Like _resized, for an ordinary JPEG; returns None for any other bytes."""
        if not data.startswith(_JPEG):
            return None
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            if colours not in ("YCbCr", "Gray") or height * width > MAX_PIXELS:
                return None
            if _may_be_rotated(data) and orientation(data) != 1:
                return None
            if is_extreme(width, height, self.size[0], self.fit):
                return None
            scale = self._part(height, width)
            rows, columns = -(-height // scale), -(-width // scale)
            pixels = simplejpeg.decode_jpeg(
                data,
                colorspace="RGBX",  # torch resizes fastest with four bytes per pixel
                buffer=self._buffer(rows * columns * 4),
                min_height=rows,
                min_width=columns,
                strict=True,
            )
        except MemoryError:
            raise
        # Damaged or unsupported: Pillow may still read it, or report what is wrong.
        except Exception:
            return None
        return self._fitted(pixels, (height, width), scale)

    def _part(self, height: int, width: int) -> int:
        """Returns the factor by which decoding reduces the sides of a JPEG."""
        if self.mode == "exact":
            return 1
        sides, edges = (height, width), [0]
        if self.fit == "pad":
            longer = max(sides)
            edges = [edge for side in sides if side < longer for edge in (centre_offset(longer, side), side)]
            sides = (longer, longer)
        enough = (side * MARGIN for side in self.size)
        room = min(side // least for side, least in zip(sides, enough, strict=True))
        return next(p for p in (8, 4, 2, 1) if p <= max(room, 1) and not any(edge % p for edge in edges))

    def _fitted(self, pixels: np.ndarray, shape: tuple[int, int] | None = None, scale: int = 1) -> Tensor:
        """(H, W, 3 or 4) → (3, S, S), bicubic. shape: original height and width of the image, of which the pixels are
        a version reduced by `scale`; None: H and W."""
        height, width = shape or pixels.shape[:2]
        side = self.size[0]
        if self.fit == "crop":
            columns, rows = cover_size(width, height, side)
            top, left = centre_offset(rows, side), centre_offset(columns, side)
            uncropped = self._resize(pixels, (rows, columns), (height, width), scale)
            return uncropped[:, top : top + side, left : left + side]
        if self.fit == "pad" and height != width:
            longer = max(height, width)
            top, left = centre_offset(longer, height) // scale, centre_offset(longer, width) // scale
            canvas = self._canvas(-(-longer // scale))
            canvas[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
            return self._resize(canvas, self.size, (longer, longer), scale)
        return self._resize(pixels, self.size, (height, width), scale)

    def _resize(self, pixels: np.ndarray, size: tuple[int, int], shape: tuple[int, int], scale: int) -> Tensor:
        """(H, W, 3 or 4) → (3, *size). The edge of a reduced JPEG, at shape / scale, may fall inside its last pixel."""
        factors = [None, None] if scale == 1 else [new * scale / old for new, old in zip(size, shape, strict=True)]
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        # Equivalent to F.interpolate(…, antialias=True), which does not accept both the size and the scale.
        return torch.ops.aten._upsample_bicubic2d_aa(image, size, False, *factors)[0, :3]

    def _canvas(self, side: int) -> np.ndarray:
        """Returns (side, side, 4), filled with the colour of the bars."""
        canvas = np.empty((side, side, 4), np.uint8)
        canvas.view(np.uint32).fill(np.array([*self._colour, 255], np.uint8).view(np.uint32)[0])
        return canvas

    def _buffer(self, size: int) -> np.ndarray:
        """Returns at least `size` bytes, reused per thread; allocating for each image costs an eighth of its time."""
        if size > _BUFFER_BYTES:
            return np.empty(size, np.uint8)
        if not hasattr(self._buffers, "buffer") or len(self._buffers.buffer) < size:
            self._buffers.buffer = np.empty(size, np.uint8)
        return self._buffers.buffer


def _may_be_rotated(jpeg: bytes) -> bool:
    """Whether the header has EXIF or XMP, or is not a plain sequence of segments."""
    at = len(_JPEG) - 1
    while jpeg[at : at + 1] == b"\xff" and jpeg[at + 1] not in (_SCAN, _APP1):
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    return jpeg[at : at + 2] != bytes((0xFF, _SCAN))
