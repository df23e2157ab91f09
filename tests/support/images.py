"""Image files of all supported kinds, and files that are not valid images."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from pipelines.images.references import ImageRoot


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Multi-scale noise on a gradient: edges, flat regions, and colours up to the corners of the RGB cube."""
    random = np.random.default_rng(seed)
    layers = [np.linspace(0, 255, width)[None, :, None] + np.linspace(-128, 128, height)[:, None, None]]
    for cells in (2, 9, 40):
        grid = random.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        layers.append(np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC), float) - 128)
    image = Image.fromarray(sum(layers[1:], layers[0]).clip(0, 255).astype(np.uint8))
    return image.filter(ImageFilter.GaussianBlur(0.7))


def read_image_bytes(root: Path, image: str) -> bytes:
    """Returns the encoded bytes of one image. Raises what ImageRoot raises."""
    return ImageRoot(root).read(image)


def encode(image: Image.Image, format: str = "JPEG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


def rotated(orientation: int) -> bytes:
    return encode(photo(300, 200), exif=exif(orientation))


def with_fill_bytes() -> bytes:
    """A JPEG with fill bytes before a marker, which the standard allows, followed by an EXIF orientation."""
    data = rotated(6)
    return data[:2] + b"\xff\xff" + data[2:]


def xmp_rotated() -> bytes:
    return encode(photo(300, 200), xmp=b'<x:xmpmeta><rdf tiff:Orientation="8"/></x:xmpmeta>')


def grey16() -> bytes:
    return encode(Image.fromarray((np.asarray(photo(300, 200).convert("L")).astype(np.uint16)) * 257), "PNG")


def palette() -> bytes:
    return encode(photo(300, 200).quantize(64), "PNG", transparency=3)


def rgba() -> bytes:
    image = photo(300, 200)
    image.putalpha(photo(300, 200, 1).convert("L"))
    return encode(image, "PNG")


KINDS: dict[str, Callable[[], bytes]] = {
    "baseline": lambda: encode(photo(640, 480), quality=90),
    "4:4:4": lambda: encode(photo(640, 427), quality=95, subsampling=0),
    "4:2:2": lambda: encode(photo(427, 640), quality=80, subsampling=1),
    "progressive": lambda: encode(photo(640, 480), progressive=True),
    "low quality": lambda: encode(photo(640, 480), quality=5),
    "upscaled": lambda: encode(photo(150, 99), quality=95),
    "same size": lambda: encode(photo(224, 224), quality=95),
    "grey": lambda: encode(photo(500, 333).convert("L")),
    "CMYK": lambda: encode(photo(300, 200).convert("CMYK")),
    "RGB JPEG": lambda: encode(photo(300, 200), keep_rgb=True),
    "restart markers": lambda: encode(photo(300, 200), restart_marker_rows=1),
    **{f"EXIF {k}": lambda k=k: rotated(k) for k in (0, 1, 2, 3, 5, 6, 8, 9)},
    "XMP 8": xmp_rotated,
    "EXIF after a comment": lambda: encode(photo(300, 200), comment=b"x" * 999, exif=exif(6), icc_profile=b"y" * 70000),
    "fill bytes": with_fill_bytes,
    "1×1": lambda: encode(photo(1, 1)),
    "1×2000": lambda: encode(photo(1, 2000)),
    "2000×1": lambda: encode(photo(2000, 1)),
    "PNG": lambda: encode(photo(300, 200), "PNG"),
    "palette PNG with transparency": palette,
    "16-bit PNG": grey16,
    "1-bit PNG": lambda: encode(photo(300, 200).convert("1"), "PNG"),
    "PNG with alpha": rgba,
    "WebP": lambda: encode(photo(300, 200), "WEBP"),
    "GIF": lambda: encode(photo(300, 200).quantize(32), "GIF"),
    "BMP": lambda: encode(photo(300, 200), "BMP"),
}


def bomb() -> bytes:
    """A PNG whose header declares 65,000 × 65,000 pixels."""
    header = struct.pack(">IIBBBBB", 65000, 65000, 8, 2, 0, 0, 0)

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


def jpeg_bomb() -> bytes:
    data = bytearray(encode(photo(64, 64)))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", 65000, 65000)
    return bytes(data)


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "image_corrupt"),
    "text": (lambda: b"no image", "image_corrupt"),
    "magic": (lambda: b"\xff\xd8\xff", "image_corrupt"),
    "header": (lambda: encode(photo(640, 480))[:200], "image_corrupt"),
    "truncated JPEG": (lambda: encode(photo(640, 480))[:9000], "image_corrupt"),
    "truncated progressive JPEG": (lambda: encode(photo(640, 480), progressive=True)[:9000], "image_corrupt"),
    "truncated PNG": (lambda: encode(photo(300, 200), "PNG")[:9000], "image_corrupt"),
    "PNG bomb": (bomb, "image_too_large"),
    "JPEG bomb": (jpeg_bomb, "image_too_large"),
    "TIFF": (lambda: encode(photo(30, 20), "TIFF"), "image_corrupt"),
}


def noise(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """Returns an image of soft coloured blobs that differ for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def png_header(width, height):
    """Returns a PNG whose header declares the given size but which has no valid pixel data."""
    content = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + content + struct.pack(">I", zlib.crc32(content))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 4) + b"IDAT" + b"xxxx" + bytes(4)
