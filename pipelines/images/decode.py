"""Image bytes → pixels: formats, size limits, EXIF orientation, RGB conversion and measuring."""

import io

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from pipelines.core.errors import ImageRefError
from pipelines.images.perceptual_hash import perceptual_hash

MAX_PIXELS = 178_956_970 // 2  # half the number at which Pillow raises DecompressionBombError
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # others are rare, and some Pillow decoders run external programs
_ORIENTATION = 0x0112  # the EXIF tag
_TRANSPOSES = {  # value of that tag → what makes the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PNG = b"\x89PNG\r\n\x1a\n"
_MAX_XMP = 1 << 20  # bytes
# Offset and bytes that identify sound images of formats that are not read, so that nobody looks for damage.
_UNREAD = (
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (4, b"ftypavif", "AVIF"),
    (4, b"ftyphei", "HEIC"),
    (4, b"ftypmif1", "HEIF"),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (0, b"8BPS", "Photoshop"),
    (0, b"%PDF", "PDF"),
)


def decode(data: bytes) -> Image.Image:
    """Fully decodes an image (the first frame of an animation) in the file's own mode and orientation.

    Raises ImageRefError: image_corrupt (also if truncated), image_too_large (before any pixel is decoded).
    """
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise RuntimeError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is on, so truncated images would be accepted: switch it off"
        )
    try:
        try:
            return _loaded(data)
        except ValueError as error:
            # Pillow limits the metadata that it unpacks; the pixels are sound.
            if not _has_long_metadata(data, error):
                raise
            return _loaded(_without_metadata(data))
    except (ImageRefError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageRefError("image_too_large", str(error)) from None
    except UnidentifiedImageError:
        if kind := next((kind for offset, magic, kind in _UNREAD if data.startswith(magic, offset)), None):
            raise ImageRefError(
                "image_corrupt", f"a {kind} file, which is not read: convert it to PNG or JPEG"
            ) from None
        raise ImageRefError("image_corrupt", f"{len(data)} bytes in none of the formats {', '.join(FORMATS)}") from None
    except Exception as error:  # decoders raise almost any exception on corrupt data
        raise ImageRefError("image_corrupt", f"{type(error).__name__}: {error}") from None


def _loaded(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageRefError("image_too_large", f"{width} by {height} pixels, more than the limit of {MAX_PIXELS}")
    image.load()
    return image


def _has_long_metadata(data: bytes, error: ValueError) -> bool:
    return data.startswith(_PNG) and ("Decompressed data too large" in str(error) or "text chunks" in str(error))


def header_size(data: bytes) -> tuple[int, int]:
    """Returns the stored width and height of an image, before its orientation is applied. Raises as Pillow does."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.size
    except ValueError as error:
        if not _has_long_metadata(data, error):
            raise
        with Image.open(io.BytesIO(_without_metadata(data)), formats=FORMATS) as image:
            return image.size


def _without_metadata(png: bytes) -> bytes:
    """Returns a PNG without its texts and colour profile, except the XMP data that may hold its orientation."""
    kept, at = [png[: len(_PNG)]], len(_PNG)
    while at + 8 <= len(png):
        end = at + 12 + int.from_bytes(png[at : at + 4], "big")
        kind, content = png[at + 4 : at + 8], png[at + 8 : end - 4]
        is_xmp = content.startswith(b"XML:com.adobe.xmp\0\0") and len(content) < _MAX_XMP
        if kind not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP") or is_xmp:
            kept.append(png[at:end])
        at = end
    return b"".join(kept)


def orientation(data: bytes) -> int:
    """Returns the EXIF orientation of an encoded image, 1 if upright. Reads only the header. Raises as Pillow does."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return _orientation_of(image)


def _orientation_of(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF data, on which Pillow raises almost anything, does not affect the pixels
        return 1


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts an image to RGB as displayed: EXIF orientation applied, transparency on white, 16 bits scaled to 8."""
    turned = _TRANSPOSES.get(_orientation_of(image))
    if turned is not None:
        image = image.transpose(turned)
        image.info = {key: value for key, value in image.info.items() if key == "transparency"}  # no orientation
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion clips at 255
        grey = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray((grey // 257).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def measure(data: bytes) -> tuple[int, int, int | None]:
    """Fully decodes an image. Returns its width and height in pixels as displayed, with its orientation applied, and
    its perceptual hash. Raises as `decode`."""
    image = decode(data)
    try:
        rgb = to_rgb(image)
    except Exception as error:  # a palette or mode that cannot be converted
        raise ImageRefError("image_corrupt", f"{type(error).__name__}: {error}") from None
    return *rgb.size, perceptual_hash(rgb)
