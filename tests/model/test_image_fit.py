"""Fitting images of any shape to squares: equality with CLIP and LLaVA, extreme shapes, invalid images."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.images import BAD, KINDS, encode, exif, photo
from torch import Tensor
from transformers import AutoProcessor, CLIPImageProcessorPil, LlavaImageProcessorPil

from model import HoneybeeImageProcessor, HoneybeeProcessor, image_fit
from model.image_fit import FITS, Fit, fit_image, limit_size, padding_colour
from model.training.data.decode import Decoder
from pipelines.images.decode import to_rgb

LENGTHS = (1, 2, 30, 31, 32, 33, 47, 64, 101)
SHAPES = [(width, height) for width in LENGTHS for height in LENGTHS]
EXTREME = [(1, 1), (1, 3000), (3000, 1), (3000, 2), (5, 2000)]
RED = (255, 0, 0)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


def processor(fit: Fit, side: int = 32) -> HoneybeeImageProcessor:
    return HoneybeeImageProcessor(fit, size={"height": side, "width": side})


def values(pixels: Tensor) -> np.ndarray:
    """Converts the processor's output (n, 3, S, S) back to (n, S, S, 3) with values from 0 to 255."""
    like = HoneybeeImageProcessor()
    mean, std = torch.tensor(like.image_mean), torch.tensor(like.image_std)
    plain = (pixels * std.view(3, 1, 1) + mean.view(3, 1, 1)) * 255
    return plain.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("side", [31, 32])
def test_crop_equals_the_clip_processor(side: int) -> None:
    clip = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    for shape in SHAPES + EXTREME:
        image = noise(*shape)
        expected = clip(image, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
        found = processor("crop", side).to_tensor([image])
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, msg=str(shape))


@pytest.mark.parametrize("side", [31, 32])
def test_pad_equals_the_llava_processor(side: int) -> None:
    square = {"height": side, "width": side}
    llava = LlavaImageProcessorPil(size={"shortest_edge": side}, crop_size=square, do_pad=True)
    for shape in SHAPES + EXTREME:
        image = noise(*shape)
        expected = llava(image, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
        found = processor("pad", side).to_tensor([image])
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, msg=str(shape))


def test_visible_region_of_each_fit() -> None:
    """The image is blue, white and red from left to right: stretch keeps all, crop the centre, pad all between bars."""
    image = Image.new("RGB", (96, 32), "white")
    image.paste("blue", (0, 0, 32, 32))
    image.paste("red", (64, 0, 96, 32))
    stretch, crop, pad = (values(processor(fit).to_tensor([image]))[0] for fit in FITS)
    assert stretch[16, 2].tolist() == [0, 0, 255] and stretch[16, 29].tolist() == [255, 0, 0]
    assert (crop == 255).all()
    assert pad[16, 2].tolist() == [0, 0, 255] and pad[16, 29].tolist() == [255, 0, 0]
    assert (pad[:9] == padding_colour(HoneybeeImageProcessor.image_mean)).all() and (pad[23:] == pad[0]).all()
    assert padding_colour((0.48145466, 0.4578275, 0.40821073)) == (122, 116, 104) and padding_colour([0, 0.5, 1]) == (
        0,
        127,
        255,
    )


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", EXTREME)
def test_extreme_shapes(fit: Fit, size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, RED)
    pixels = processor(fit).to_tensor([image])
    assert pixels.shape == (1, 3, 32, 32)
    if fit != "pad" or size == (1, 1):
        assert (values(pixels) == RED).all()
    decoded, problems = Decoder.like(processor(fit))([encode(image, "PNG")])
    assert problems == [None] and np.abs(values(decoded).astype(int) - values(pixels)).max() <= 2


@pytest.mark.parametrize("side", [32, 336])
@pytest.mark.parametrize("size", [(1, 9_000_000), (9_000_000, 1), (3, 1_000_000)])
@pytest.mark.parametrize("fit", FITS)
def test_memory_is_bounded_for_extremely_long_images(fit: Fit, size: tuple[int, int], side: int) -> None:
    image = limit_size(Image.new("RGB", size, RED), side, fit)
    if fit == "crop":
        assert np.prod(image_fit.cover_size(*image.size, side), dtype=float) <= image_fit._MAX_INTERMEDIATE
    assert fit != "pad" or max(image.size) ** 2 <= image_fit._MAX_INTERMEDIATE
    assert fit != "stretch" or image.height * side <= image_fit._MAX_INTERMEDIATE
    assert limit_size(image, side, fit) is image


def test_bounding_hardly_changes_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a bound so low that small images exceed it, the pixels are nearly the same as without the bound."""
    slope = photo(40, 4000)
    before = {fit: fit_image(slope, (32, 32), fit, RED) for fit in FITS}
    monkeypatch.setattr(image_fit, "_MAX_INTERMEDIATE", 32 * 32 * 20)
    for fit in FITS:
        assert image_fit.is_extreme(*slope.size, 32, fit)
        after = fit_image(slope, (32, 32), fit, RED)
        assert np.abs(np.asarray(after, int) - np.asarray(before[fit])).mean() < 3, fit
        pixels, problems = Decoder.like(processor(fit))([encode(slope, quality=95)])
        assert problems == [None]
        expected = processor(fit).to_tensor([Image.open(io.BytesIO(encode(slope, quality=95)))])
        assert np.abs(values(pixels).astype(int) - values(expected)).max() <= 2


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("size", [(1024, 512), (512, 2048), (1027, 1031), (1400, 1056), (1029, 515), (2080, 528)])
def test_fast_decoding_is_accurate_on_large_jpegs(fit: Fit, size: tuple[int, int]) -> None:
    """The edges of the bars and the centre must not move by the fractional pixel at the edge of a scaled JPEG."""
    data = encode(photo(*size), quality=92)
    pixels, problems = Decoder.like(processor(fit, 64), "fast")([data])
    exact, _ = Decoder.like(processor(fit, 64))([data])
    assert problems == [None]
    brightness = (values(pixels).astype(float) - values(exact)) @ [0.299, 0.587, 0.114]
    assert np.abs(brightness).mean() < 0.6 and np.abs(brightness).max() < 5


@pytest.mark.parametrize(
    ("size", "part"), [((640, 480), 8), ((640, 427), 1), ((640, 200), 4), ((130, 40), 1), ((300, 256), 2)]
)
def test_fast_decoding_scales_a_padded_image_only_if_its_edges_stay(size: tuple[int, int], part: int) -> None:
    assert Decoder.like(processor("pad"), "fast")._part(*size) == part
    assert Decoder.like(processor("pad"), "fast")._part(*reversed(size)) == part


def test_fit_is_saved_and_defaults_to_stretch_for_older_processors(tiny_backbones: Path, tmp_path: Path) -> None:
    built = HoneybeeProcessor.from_backbones(tiny_backbones / "vision", tiny_backbones / "llm", 4, image_fit="pad")
    built.save_pretrained(tmp_path)
    loaded: Any = AutoProcessor.from_pretrained(tmp_path)
    image = noise(50, 20)
    assert loaded.image_processor.fit == "pad"
    batch = loaded(text="<image>", images=image, return_tensors="pt")
    assert torch.equal(batch["pixel_values"], built.preprocess([image]))
    assert Decoder.like(loaded.image_processor).fit == "pad"
    file = tmp_path / "processor_config.json"
    file.write_text(file.read_text().replace('"fit": "pad",', ""))
    assert HoneybeeProcessor.from_pretrained(tmp_path).image_processor.fit == "stretch"


def test_invalid_fit_is_rejected() -> None:
    other: Any = "squash"
    with pytest.raises(ValueError, match="fit is 'squash', but must be one of stretch, crop, pad"):
        HoneybeeImageProcessor(other)
    with pytest.raises(ValueError, match="fit pad needs a square size, found 48 × 80"):
        HoneybeeImageProcessor("pad", size={"height": 48, "width": 80})
    with pytest.raises(TypeError, match="fit"):  # the fit must not be overridden in a call
        processor("crop")([noise(4, 4)], fit="pad")


# --- files of all kinds ---


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("kind", KINDS)
def test_files_of_all_kinds_are_fitted_in_displayed_form(kind: str, fit: Fit, tmp_path: Path) -> None:
    """Every image is rotated upright, composited on white and converted to 8-bit RGB before it is fitted."""
    file = tmp_path / "image"
    file.write_bytes(KINDS[kind]())
    found = processor(fit)([file], return_tensors="pt")["pixel_values"]
    with Image.open(file) as opened:
        expected = fit_image(to_rgb(opened), (32, 32), fit, padding_colour(HoneybeeImageProcessor.image_mean))
    assert (values(found)[0] == np.asarray(expected)).all()


@pytest.mark.parametrize("fit", FITS)
def test_exif_orientation_is_applied_before_fitting(fit: Fit) -> None:
    upright = photo(60, 40)
    rotated = encode(upright.rotate(90, expand=True), "PNG", exif=exif(6))
    found = processor(fit).to_tensor([Image.open(io.BytesIO(rotated))])
    assert torch.equal(found, processor(fit).to_tensor([upright]))


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("kind", BAD)
def test_invalid_image_file_is_named(kind: str, fit: Fit, tmp_path: Path) -> None:
    make, reason = BAD[kind]
    file = tmp_path / "image.jpg"
    file.write_bytes(make())
    with pytest.raises(ValueError, match=rf"image.jpg cannot be read as an image: {reason}"):
        processor(fit)([file])


def test_truncated_file_that_is_already_open_is_named(tmp_path: Path) -> None:
    file = tmp_path / "truncated.jpg"
    file.write_bytes(encode(photo(640, 480))[:9000])
    with (
        Image.open(file) as opened,
        pytest.raises(ValueError, match=r"truncated.jpg cannot be read as an image: .*truncated"),
    ):
        processor("crop")([opened])
