"""Image bytes → pixels: formats, size limits, EXIF orientation, RGB conversion and measuring."""

import io

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from pipelines.core.errors import ImageRefError
from pipelines.images.perceptual_hash import perceptual_hash

MAX_PIXELS = 178_956_970 // 2  # half the number at which Pillow raises DecompressionBombError
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # others are rare, and some Pillow decoders run external programs
_ORIENTATION = 0x0112  # the EXIF tag


def decode(data: bytes) -> Image.Image:
    """Fully decodes an image (the first frame of an animation) in the file's own mode and orientation.

    Raises ImageRefError: image_corrupt (also if truncated), image_too_large (before any pixel is decoded).
    """
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise RuntimeError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is on, so truncated images would be accepted: switch it off"
        )
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ImageRefError("image_too_large", f"{width} by {height} pixels, more than the limit of {MAX_PIXELS}")
        image.load()
        return image
    except (ImageRefError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageRefError("image_too_large", str(error)) from None
    except UnidentifiedImageError:
        raise ImageRefError("image_corrupt", f"{len(data)} bytes in none of the formats {', '.join(FORMATS)}") from None
    except Exception as error:  # decoders raise almost any exception on corrupt data
        raise ImageRefError("image_corrupt", f"{type(error).__name__}: {error}") from None


def orientation(data: bytes) -> int:
    """Returns the EXIF orientation of an encoded image, 1 if upright. Reads only the header. Raises as Pillow does."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return image.getexif().get(_ORIENTATION, 1)


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts an image to RGB as displayed: EXIF orientation applied, transparency on white, 16 bits scaled to 8."""
    if image.getexif().get(_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion clips at 255
        grey = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray((grey // 257).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def measure(data: bytes) -> tuple[int, int, int | None]:
    """Fully decodes an image. Returns its width and height in pixels and its perceptual hash. Raises as `decode`."""
    image = decode(data)
    try:
        rgb = to_rgb(image)
    except Exception as error:  # EXIF data that cannot be parsed
        raise ImageRefError("image_corrupt", f"{type(error).__name__}: {error}") from None
    return *image.size, perceptual_hash(rgb)
