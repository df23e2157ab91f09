"""Metadata of sound images: long, damaged, or with an orientation."""

import io
import zlib

import pytest
from PIL import Image, ImageOps

from pipelines.core.errors import ImageRefError
from pipelines.images.decode import decode, measure, to_rgb
from pipelines.images.shrink import Shrink


def encoded(size, kind):
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(buffer, kind)
    return buffer.getvalue()


def with_chunk(png, kind, content, at=33):
    chunk = len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")
    return png[:at] + chunk + png[at:]


@pytest.mark.parametrize("at", [33, -12])  # after IHDR, before IEND
@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP", b"tEXt"])
def test_long_metadata_of_a_sound_png_is_ignored(kind, at):
    packed = zlib.compress(b"x" * (70 << 20 if kind == b"tEXt" else 3 << 20))
    content = {b"zTXt": b"prompt\0\0", b"iTXt": b"prompt\0\1\0\0\0", b"iCCP": b"icc\0\0", b"tEXt": b"a\0"}[kind]
    content += packed if kind != b"tEXt" else b"x" * (65 << 20)
    png = encoded((40, 30), "PNG")
    data = with_chunk(png, kind, content, at)
    assert measure(data) == measure(png)
    assert Shrink(100)(data) == data
    with pytest.raises(ImageRefError, match="image_corrupt"):
        measure(data[: len(data) // 2])


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG"])
def test_long_metadata_of_other_formats_is_ignored(kind):
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x010E] = "x" * 60_000
    profile = b"\0" * (3 << 20)
    Image.linear_gradient("L").resize((40, 30)).convert("RGB").save(buffer, kind, icc_profile=profile, exif=exif)
    assert measure(buffer.getvalue())[:2] == (40, 30)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("value", range(1, 9))
def test_sizes_and_pixels_are_those_of_the_upright_image(kind, value):
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = value
    image = Image.linear_gradient("L").resize((40, 30)).convert("RGB")
    image.save(buffer, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    assert measure(buffer.getvalue())[:2] == ((30, 40) if value > 4 else (40, 30))
    upright = to_rgb(decode(buffer.getvalue()))
    assert upright.tobytes() == ImageOps.exif_transpose(decode(buffer.getvalue())).tobytes()
    assert to_rgb(upright).size == upright.size  # not turned a second time


def test_damaged_exif_data_does_not_make_an_image_corrupt():
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30)).save(buffer, "JPEG", exif=b"Exif\0\0not a TIFF header")
    assert measure(buffer.getvalue())[:2] == (40, 30)


def test_sound_images_of_formats_that_are_not_read():
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30)).save(buffer, "TIFF")
    with pytest.raises(ImageRefError, match="a TIFF file, which is not read: convert it"):
        measure(buffer.getvalue())
