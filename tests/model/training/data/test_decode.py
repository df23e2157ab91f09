"""Compares the training decoder with the model's processor, over all kinds of valid and invalid image files."""

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.images import BAD, KINDS, encode, photo
from torch import Tensor

from model.image_fit import FITS, Fit
from model.processing import HoneybeeImageProcessor
from model.training.data import decode
from model.training.data.decode import Decoder

S = 224
PROCESSORS = {fit: HoneybeeImageProcessor(fit, size={"height": S, "width": S}) for fit in FITS}
PROCESSOR = PROCESSORS["stretch"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Uses one torch thread, as in the loader: images are too small for more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def reference(data: bytes, fit: Fit = "stretch") -> Tensor:
    return PROCESSORS[fit].to_tensor([Image.open(io.BytesIO(data))])


def steps(a: Tensor, b: Tensor) -> Tensor:
    """Returns absolute differences in steps of 1/255, before normalisation."""
    return (a - b).abs() * (torch.tensor(PROCESSOR.image_std) * 255).view(3, 1, 1)


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("kind", KINDS)
def test_pixels_match_the_processor_up_to_rounding(kind: str, fit: Fit, mode: decode.Mode) -> None:
    data = KINDS[kind]()
    pixels, problems = Decoder.like(PROCESSORS[fit], mode)([data])
    assert problems == [None]
    assert pixels.shape == (1, 3, S, S) and pixels.dtype == torch.float32 and pixels.is_contiguous()
    different = steps(pixels, reference(data, fit))
    assert different.max() < 2.01
    assert (different > 0.01).float().mean() < 0.01
    if kind == "same size":
        assert torch.equal(pixels, reference(data, fit))


def test_processor_with_other_size_and_normalisation() -> None:
    processor = HoneybeeImageProcessor(
        size={"height": 48, "width": 80}, image_mean=[0.1, 0.2, 0.3], image_std=[0.5] * 3
    )
    data = encode(photo(333, 222))
    for mode in ("exact", "fast"):
        pixels, _ = Decoder.like(processor, mode)([data])
        expected = processor.to_tensor([Image.open(io.BytesIO(data))])
        assert pixels.shape == expected.shape == (1, 3, 48, 80)
        assert (pixels - expected).abs().mean() < (0.001 if mode == "exact" else 0.02)


@pytest.mark.parametrize(("width", "height"), [(256, 256), (285, 301), (515, 513), (1029, 513), (1027, 1031)])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_fast_is_close_to_exact_on_large_jpegs(width: int, height: int, subsampling: int) -> None:
    """Includes sides not divisible by 8: the partial pixel at the edge must not stretch the image."""
    processor = HoneybeeImageProcessor(size={"height": 64, "width": 64})
    data = encode(photo(width, height), quality=92, subsampling=subsampling)
    pixels, problems = Decoder.like(processor, "fast")([data])
    exact, _ = Decoder.like(processor)([data])
    assert problems == [None] and not torch.equal(pixels, exact)
    different = (pixels - exact)[0] * (torch.tensor(processor.image_std) * 255).view(3, 1, 1)
    brightness = (different * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0).abs()
    assert brightness.mean() < 0.6 and brightness.max() < 4
    assert different.abs().max() < 16  # subsampled chroma is not upsampled first, so colours are sharper


@pytest.mark.parametrize(
    ("size", "part"),
    [((480, 640), 1), ((895, 5000), 1), ((896, 896), 2), ((1791, 1792), 2), ((1792, 1792), 4), ((4000, 6000), 8)],
)
def test_fast_decodes_to_at_least_twice_the_target_size(size: tuple[int, int], part: int) -> None:
    assert Decoder.like(PROCESSOR, "fast")._part(*size) == part
    assert Decoder.like(PROCESSOR, "exact")._part(*size) == 1


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("fit", FITS)
def test_bad_images_are_black_and_do_not_affect_others(fit: Fit, mode: decode.Mode) -> None:
    good = encode(photo(640, 480))
    decoder = Decoder.like(PROCESSORS[fit], mode)
    (expected,), _ = decoder([good])
    black = PROCESSOR.to_tensor([Image.new("RGB", (1, 1))])[0]
    batch = [data for make, _ in BAD.values() for data in (make(), good)]
    pixels, problems = decoder(batch)
    for i, (name, (_, reason)) in enumerate(BAD.items()):
        assert torch.equal(pixels[2 * i], black), name
        assert reason in str(problems[2 * i]), name
        assert torch.equal(pixels[2 * i + 1], expected) and problems[2 * i + 1] is None, name
    nothing, none = decoder([])
    assert nothing.shape == (0, 3, S, S) and none == []


def test_image_with_too_many_bytes_or_pixels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(photo(640, 480))
    monkeypatch.setattr(decode, "MAX_BYTES", len(data) - 1)
    _, (problem,) = Decoder.like(PROCESSOR)([data])
    assert "image_too_large" in str(problem)
    monkeypatch.undo()
    for module in ("model.training.data.decode", "pipelines.images.decode"):
        monkeypatch.setattr(f"{module}.MAX_PIXELS", 640 * 480 - 1)
    _, (problem,) = Decoder.like(PROCESSOR)([data])
    assert "image_too_large: 640 by 480 pixels" in str(problem)


def test_damage_that_pillow_tolerates_is_tolerated() -> None:
    """With stray bytes between two markers libjpeg warns and continues, and so does the reference."""
    data = encode(photo(640, 480), restart_marker_rows=4)
    at = data.index(b"\xff\xd1")
    damaged = data[:at] + b"\x12\x34\x56" + data[at:]
    pixels, problems = Decoder.like(PROCESSOR)([damaged])
    assert problems == [None]
    assert steps(pixels, reference(damaged)).max() < 2.01


def test_flipped_bits_never_raise_and_agree_with_pillow() -> None:
    """If Pillow can still decode the bytes, the pixels agree; otherwise a problem is reported."""
    data = encode(photo(200, 150), quality=80)
    random = np.random.default_rng(0)
    damaged = []
    for _ in range(150):
        copy = bytearray(data)
        for at in random.integers(0, len(copy) if random.random() < 0.5 else 700, 3):
            copy[at] ^= 1 << int(random.integers(8))
        damaged.append(bytes(copy))
    pixels, problems = Decoder.like(PROCESSOR)(damaged)
    for one, problem, own in zip(damaged, problems, pixels, strict=True):
        try:
            expected = reference(one)
        except Exception:
            assert problem is not None
        else:
            assert problem is None
            assert steps(own, expected).max() < 2.01
    assert 10 < sum(problem is None for problem in problems) < 150


def test_threads_do_not_change_the_result() -> None:
    """Images of many sizes share the buffers of the threads."""
    encoded = [make() for make in (*KINDS.values(), *(make for make, _ in BAD.values()))] * 2
    for mode, fit in (("exact", "stretch"), ("fast", "stretch"), ("exact", "pad"), ("fast", "crop")):
        decoder = Decoder.like(PROCESSORS[fit], mode)
        alone, problems = decoder(encoded)
        with ThreadPoolExecutor(4, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            chunks = list(pool.map(decoder, [encoded[i : i + 3] for i in range(0, len(encoded), 3)]))
        assert torch.equal(torch.cat([pixels for pixels, _ in chunks]), alone)
        assert [problem for _, chunk in chunks for problem in chunk] == problems


@pytest.mark.realdata
@pytest.mark.parametrize("fit", FITS)
def test_real_images(realdata: Path, fit: Fit) -> None:
    """Checks the bounds stated in model/training/data/decode.py; for `fast` at a size for which COCO images are
    large."""
    files = sorted(p for p in (realdata / "corpus").rglob("*") if p.suffix in (".jpg", ".png"))
    encoded = [path.read_bytes() for path in files]
    images = [Image.open(io.BytesIO(data)) for data in encoded]
    assert len(encoded) > 250

    def differences(mode: decode.Mode, size: int) -> tuple[Tensor, int]:
        """Returns the differences of all images, for `fast` of those it decodes at reduced scale, and their number."""
        processor = HoneybeeImageProcessor(fit, size={"height": size, "width": size})
        decoder, found = Decoder.like(processor, mode), []
        pixels, problems = decoder(encoded)
        assert problems == [None] * len(encoded)
        for own, image in zip(pixels, images, strict=True):
            if mode == "exact" or (image.format == "JPEG" and decoder._part(image.height, image.width) > 1):
                found.append(steps(own, processor.to_tensor([image])[0]))
        return torch.cat(found).flatten(), len(found)

    exact, _ = differences("exact", S)
    assert exact.max() < 2.01
    assert (exact > 0.5).float().mean() < 1 / 400
    fast, scaled = differences("fast", 84)
    assert scaled > (50 if fit == "pad" else 100)
    assert fast.mean() < 0.4
    assert np.quantile(fast.numpy(), 0.999) < 8
    assert 10 * torch.log10(255**2 / (fast**2).mean()) > 50
