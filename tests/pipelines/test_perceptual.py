"""Perceptual hashes: stable for copies, apart for other pictures, absent where they would say nothing."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from pipelines.images import ImageRoot, measure, to_rgb
from pipelines.perceptual import near_pairs, perceptual_hash

DISTANCE = 8


def noise(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """Soft coloured blobs, of another kind for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def encoded(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def phash(picture: Image.Image, kind: str = "PNG", **options) -> int | None:
    return measure(encoded(picture, kind, **options))[2]


@pytest.mark.parametrize("seed", range(3))
def test_copies_are_near_and_others_are_not(seed):
    picture = noise(seed)
    original = phash(picture)
    copies = [
        phash(picture, "JPEG", quality=40),
        phash(picture.resize((96, 96)), "WEBP", quality=60),
        phash(picture.convert("L"), "JPEG"),
        phash(picture.convert("CMYK"), "JPEG"),
        phash(picture.quantize(64)),
        phash(picture.crop((1, 1, 159, 119))),
    ]
    assert all((original ^ copy).bit_count() <= DISTANCE for copy in copies)
    others = [phash(noise(seed + 10 + k)) for k in range(50)] + [phash(ImageOps.mirror(picture))]
    assert all((original ^ other).bit_count() > DISTANCE for other in others)


def test_the_picture_counts_as_a_person_sees_it():
    picture = noise(0)
    turned = picture.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned to the left, to be shown turned right
    assert (phash(picture) ^ phash(turned, exif=exif.tobytes())).bit_count() <= DISTANCE
    assert (phash(picture) ^ phash(turned)).bit_count() > DISTANCE
    clear = picture.convert("RGBA")
    clear.putalpha(Image.new("L", picture.size, 255))
    assert phash(clear) == phash(picture)


def test_plain_pictures_and_drawings_on_white_have_no_hash():
    assert phash(Image.new("RGB", (64, 64), "red")) is None
    chart = Image.new("RGB", (200, 100), "white")
    ImageDraw.Draw(chart).line((0, 90, 60, 20, 120, 70, 199, 10), "black", 3)
    assert phash(chart) is None
    assert phash(chart, "JPEG", quality=30) is None


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (3000, 2), (32, 32)])
def test_any_size_will_do(size):
    perceptual_hash(to_rgb(noise(1, size)))


def test_the_hash_of_a_picture_is_what_it_was():
    # A changed value calls for new versions in build.py, benchmark_items.py and decontaminate.py.
    y, x = np.mgrid[0:60, 0:80]
    picture = Image.fromarray(np.stack([3 * x, 4 * y, (x * y) % 256], -1).astype(np.uint8))
    assert f"{perceptual_hash(picture):016x}" == "80000f1f3f3f3e3e"


def test_near_pairs_are_all_pairs():
    random = np.random.default_rng(0)
    some = random.integers(0, 2**64, 700, np.uint64)
    others = np.concatenate([some[::7] ^ np.uint64(0b10111), random.integers(0, 2**64, 300, np.uint64)])
    found = set(zip(*(column.tolist() for column in near_pairs(some, others, 24)), strict=True))
    expected = {
        (i, j, bits)
        for i, a in enumerate(some.tolist())
        for j, b in enumerate(others.tolist())
        if (bits := (a ^ b).bit_count()) <= 24
    }
    assert found == expected and len(expected) >= 100
    assert [len(column) for column in near_pairs(some, others[:0], 64)] == [0, 0, 0]
    assert [len(column) for column in near_pairs(some[:0], others, 64)] == [0, 0, 0]


@pytest.mark.realdata
def test_real_photographs(realdata):
    folder = realdata / "corpus" / "coco" / "images" / "train2017"
    place = ImageRoot(folder)
    hashes = [measure(place.read(path.name))[2] for path in sorted(folder.iterdir())]
    assert None not in hashes
    i, j, _ = near_pairs(np.array(hashes, np.uint64), np.array(hashes, np.uint64), DISTANCE)
    assert i.tolist() == j.tolist() == list(range(len(hashes)))
