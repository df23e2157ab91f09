"""Fits an image of any aspect ratio to a square of S × S pixels, without importing torch.

`stretch`: resizes directly and ignores the aspect ratio (as in the paper). `crop`: resizes the shorter side to S, then
takes a centre crop (as CLIP does; rounded as in transformers, which can be off by one pixel from torchvision if S and
the longer side differ by an odd number). `pad`: pads to a square with bars of the mean colour on both sides, then
resizes (LLaVA's `expand2square`). All modes use bicubic interpolation.
"""

import math
from collections.abc import Sequence
from typing import Literal

from PIL import Image

from pipelines.images.decode import MAX_PIXELS

Fit = Literal["stretch", "crop", "pad"]
FITS: tuple[Fit, ...] = ("stretch", "crop", "pad")

# Upper bound for every intermediate image: otherwise, an image of 1 × 3,000,000 pixels would be cropped from one of
# 1.5 · 10¹¹ pixels, and stretched through one of S × 3,000,000.
_MAX_INTERMEDIATE = MAX_PIXELS


def fit_image(image: Image.Image, size: tuple[int, int], fit: Fit, colour: tuple[int, int, int]) -> Image.Image:
    """Fits an RGB image to `size` (width, height), which must be square unless the fit is `stretch`. colour: fill
    colour of the bars."""
    side = size[0]
    image = limit_size(image, side, fit)
    if fit == "crop":
        width, height = cover_size(*image.size, side)
        left, top = centre_offset(width, side), centre_offset(height, side)
        resized = image.resize((width, height), Image.Resampling.BICUBIC)
        return resized.crop((left, top, left + side, top + side))
    if fit == "pad":
        image = pad_to_square(image, colour)
    return image.resize(size, Image.Resampling.BICUBIC)


def cover_size(width: int, height: int, side: int) -> tuple[int, int]:
    """Returns width and height after the shorter side has been scaled to `side`."""
    short = min(width, height)
    return side * width // short, side * height // short


def centre_offset(total: int, part: int) -> int:
    """Returns the start of a centred part; an odd remaining pixel goes after it."""
    return (total - part) // 2


def padding_colour(mean: Sequence[float]) -> tuple[int, int, int]:
    """Converts the mean of each channel, in the range 0 to 1, to an RGB colour."""
    red, green, blue = (int(value * 255) for value in mean)
    return red, green, blue


def pad_to_square(image: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """Centres the image in a square whose side is the image's longer side."""
    width, height = image.size
    if width == height:
        return image
    longer = max(image.size)
    square = Image.new("RGB", (longer, longer), colour)
    square.paste(image, (centre_offset(longer, width), centre_offset(longer, height)))
    return square


def is_extreme(width: int, height: int, side: int, fit: Fit) -> bool:
    """Returns whether `limit_size` changes an image of this size."""
    if fit == "crop":
        return math.prod(cover_size(width, height, side)) > max(_MAX_INTERMEDIATE, side * side)
    return (side * height if fit == "stretch" else max(width, height) ** 2) > _MAX_INTERMEDIATE


def limit_size(image: Image.Image, side: int, fit: Fit) -> Image.Image:
    """Reduces an image for which fitting would need an intermediate image of more than MAX_PIXELS pixels: `crop` keeps
    its centre, `pad` scales it down, `stretch` reduces its height. Returns all other images unchanged."""
    if not is_extreme(*image.size, side, fit):
        return image
    if fit == "crop":
        keep = min(image.size) * max(1, _MAX_INTERMEDIATE // side**2)
        width, height = (min(length, keep) for length in image.size)
        left, top = centre_offset(image.width, width), centre_offset(image.height, height)
        return image.crop((left, top, left + width, top + height))
    if fit == "stretch":
        return image.resize((image.width, max(1, _MAX_INTERMEDIATE // side)), Image.Resampling.BICUBIC)
    scale = math.isqrt(_MAX_INTERMEDIATE) / max(image.size)
    width, height = (max(1, int(length * scale)) for length in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)
