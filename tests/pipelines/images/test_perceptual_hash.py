"""Perceptual hashes: close for copies, distant for different images, and absent if they would be meaningless."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps
from support.images import encode, noise

from pipelines.images.decode import measure, to_rgb
from pipelines.images.perceptual_hash import near_pairs, perceptual_hash
from pipelines.images.references import ImageRoot

DISTANCE = 8


def phash(image: Image.Image, kind: str = "PNG", **options) -> int | None:
    return measure(encode(image, kind, **options))[2]


@pytest.mark.parametrize("seed", range(3))
def test_copies_are_near_and_different_images_are_not(seed):
    image = noise(seed)
    original = phash(image)
    copies = [
        phash(image, "JPEG", quality=40),
        phash(image.resize((96, 96)), "WEBP", quality=60),
        phash(image.convert("L"), "JPEG"),
        phash(image.convert("CMYK"), "JPEG"),
        phash(image.quantize(64)),
        phash(image.crop((1, 1, 159, 119))),
    ]
    assert all((original ^ copy).bit_count() <= DISTANCE for copy in copies)
    others = [phash(noise(seed + 10 + k)) for k in range(50)] + [phash(ImageOps.mirror(image))]
    assert all((original ^ other).bit_count() > DISTANCE for other in others)


def test_the_hash_is_that_of_the_displayed_image():
    image = noise(0)
    turned = image.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored rotated to the left, displayed rotated to the right
    assert (phash(image) ^ phash(turned, exif=exif.tobytes())).bit_count() <= DISTANCE
    assert (phash(image) ^ phash(turned)).bit_count() > DISTANCE
    clear = image.convert("RGBA")
    clear.putalpha(Image.new("L", image.size, 255))
    assert phash(clear) == phash(image)


def test_uniform_images_and_drawings_on_white_have_no_hash():
    assert phash(Image.new("RGB", (64, 64), "red")) is None
    chart = Image.new("RGB", (200, 100), "white")
    ImageDraw.Draw(chart).line((0, 90, 60, 20, 120, 70, 199, 10), "black", 3)
    assert phash(chart) is None
    assert phash(chart, "JPEG", quality=30) is None


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (3000, 2), (32, 32)])
def test_images_of_any_size_are_accepted(size):
    perceptual_hash(to_rgb(noise(1, size)))


def test_the_hash_value_is_stable():
    # A changed value requires new versions in build.py, benchmark_items.py and decontaminate.py.
    y, x = np.mgrid[0:60, 0:80]
    image = Image.fromarray(np.stack([3 * x, 4 * y, (x * y) % 256], -1).astype(np.uint8))
    assert f"{perceptual_hash(image):016x}" == "80000f1f3f3f3e3e"


def test_near_pairs_finds_all_pairs():
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
def test_real_photographs_differ_from_each_other(realdata):
    folder = realdata / "corpus" / "coco" / "images" / "train2017"
    image_root = ImageRoot(folder)
    hashes = [measure(image_root.read(path.name))[2] for path in sorted(folder.iterdir())]
    assert None not in hashes
    i, j, _ = near_pairs(np.array(hashes, np.uint64), np.array(hashes, np.uint64), DISTANCE)
    assert i.tolist() == j.tolist() == list(range(len(hashes)))
