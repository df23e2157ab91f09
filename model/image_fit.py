"""How a picture of any shape becomes a square of S × S pixels. Needs no torch.

`stretch`: a straight resize, whatever the shape (the paper's way). `crop`: the shorter side becomes S, then the middle
is cut out (CLIP's; rounded as transformers rounds, which where S and the longer side differ by an odd number may lie a
pixel beside torchvision's). `pad`: bars of the mean colour on both sides make it a square, which is resized (LLaVA's,
`expand2square`). All of them bicubic.
"""

import math
from collections.abc import Sequence
from typing import Literal

from PIL import Image

from pipelines.images import MAX_PIXELS

Fit = Literal["stretch", "crop", "pad"]
FITS: tuple[Fit, ...] = ("stretch", "crop", "pad")

# Nothing that is made on the way to S × S has more pixels: a line of 1 × 3,000,000 would be cropped from 1.5 · 10¹¹,
# and stretched by way of S × 3,000,000.
_MOST = MAX_PIXELS


def fitted(image: Image.Image, size: tuple[int, int], fit: Fit, colour: tuple[int, int, int]) -> Image.Image:
    """An RGB image of any size → one of `size`, width and height, which are equal unless the fit is `stretch`.
    colour: of the bars."""
    side = size[0]
    image = bounded(image, side, fit)
    if fit == "crop":
        width, height = covering(*image.size, side)
        left, top = offset(width, side), offset(height, side)
        resized = image.resize((width, height), Image.Resampling.BICUBIC)
        return resized.crop((left, top, left + side, top + side))
    if fit == "pad":
        image = padded(image, colour)
    return image.resize(size, Image.Resampling.BICUBIC)


def covering(width: int, height: int, side: int) -> tuple[int, int]:
    """Width and height of a picture whose shorter side became `side`."""
    short = min(width, height)
    return side * width // short, side * height // short


def offset(whole: int, part: int) -> int:
    """Where a part in the middle begins: the odd pixel is behind it."""
    return (whole - part) // 2


def bar_colour(mean: Sequence[float]) -> tuple[int, int, int]:
    """mean: of each channel, of values from 0 to 1."""
    red, green, blue = (int(value * 255) for value in mean)
    return red, green, blue


def padded(image: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """The picture in the middle of a square of its longer side."""
    width, height = image.size
    if width == height:
        return image
    longer = max(image.size)
    whole = Image.new("RGB", (longer, longer), colour)
    whole.paste(image, (offset(longer, width), offset(longer, height)))
    return whole


def is_extreme(width: int, height: int, side: int, fit: Fit) -> bool:
    """Whether `bounded` changes a picture of that size."""
    if fit == "crop":
        return math.prod(covering(width, height, side)) > max(_MOST, side * side)
    return (side * height if fit == "stretch" else max(width, height) ** 2) > _MOST


def bounded(image: Image.Image, side: int, fit: Fit) -> Image.Image:
    """The picture, or where it is so long or so large that fitting it would take more than MAX_PIXELS pixels: for
    `crop` what lies about its middle, for `pad` a smaller one, for `stretch` one less tall."""
    if not is_extreme(*image.size, side, fit):
        return image
    if fit == "crop":
        keep = min(image.size) * max(1, _MOST // side**2)
        width, height = (min(length, keep) for length in image.size)
        left, top = offset(image.width, width), offset(image.height, height)
        return image.crop((left, top, left + width, top + height))
    if fit == "stretch":
        return image.resize((image.width, max(1, _MOST // side)), Image.Resampling.BICUBIC)
    scale = math.isqrt(_MOST) / max(image.size)
    width, height = (max(1, int(length * scale)) for length in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)
