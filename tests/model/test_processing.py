"""Preprocessing of images of all kinds and tokenisation of texts with image placeholders, including rejected inputs."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor, CLIPImageProcessorPil

from model import HoneybeeImageProcessor, HoneybeeProcessor
from pipelines.images.decode import to_rgb

IMAGE = 3


def noise(width: int = 50, height: int = 40, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


# --- images ---


def test_pixels_equal_the_clip_processor_without_crop(tiny_processor: Any) -> None:
    clip = CLIPImageProcessorPil(size={"height": 32, "width": 32}, do_center_crop=False)
    images = [noise(), noise(20, 90), noise(200, 30)]
    expected = clip(images, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(tiny_processor.preprocess(images), expected, rtol=1e-5, atol=1e-5)
    batch = tiny_processor(text="<image><image><image>", images=images, return_tensors="pt")
    assert torch.equal(batch["pixel_values"], tiny_processor.preprocess(images))
    assert tiny_processor.preprocess([]).shape == (0, 3, 32, 32)


RED = (255, 0, 0)


@pytest.mark.parametrize(
    "image, expected",
    [
        (Image.new("L", (4, 4), 100), (100, 100, 100)),
        (Image.new("1", (4, 4), 1), (255, 255, 255)),
        (Image.new("P", (4, 4), 7), None),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 255)), RED),
        (Image.new("RGBA", (4, 4), (0, 0, 0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 51)), (255, 204, 204)),
        (Image.new("LA", (4, 4), (0, 0)), (255, 255, 255)),
        (Image.new("CMYK", (4, 4), (0, 255, 255, 0)), RED),
        (Image.fromarray(np.full((4, 4), 65535, dtype=np.uint16)), (255, 255, 255)),
        (Image.fromarray(np.full((4, 4), 257 * 128, dtype=np.uint16)), (128, 128, 128)),
        (Image.fromarray(np.full((4, 4), 257 * 30, dtype=np.int32)), (30, 30, 30)),
        (Image.new("F", (4, 4), 60.0), (60, 60, 60)),
        (Image.new("YCbCr", (4, 4), (76, 85, 255)), None),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else "",
)
def test_every_mode_becomes_rgb(image: Image.Image, expected: tuple[int, int, int] | None) -> None:
    rgb = to_rgb(image)
    assert rgb.mode == "RGB" and rgb.size == (4, 4)
    assert rgb.getpixel((1, 1)) == (expected or image.convert("RGB").getpixel((1, 1)))


def test_files_with_unusual_modes(tmp_path: Path, tiny_processor: Any) -> None:
    deep = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([0, 255, 0] * 256)
    palette.save(tmp_path / "clear.png", transparency=0)
    noise().convert("CMYK").save(tmp_path / "cmyk.jpg")
    grey = np.asarray(to_rgb(tiny_processor.image_processor.fetch_images(tmp_path / "deep.png")))[..., 0]
    np.testing.assert_allclose(grey, deep / 257, atol=1)
    clear = to_rgb(tiny_processor.image_processor.fetch_images(tmp_path / "clear.png"))
    assert clear.getpixel((3, 3)) == (255, 255, 255)
    files = [str(tmp_path / name) for name in ("deep.png", "clear.png", "cmyk.jpg")]
    pixels = tiny_processor(text="<image>" * 3, images=files, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (3, 3, 32, 32) and torch.isfinite(pixels).all()


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    upright = Image.new("RGB", (40, 20), "blue")
    upright.paste(RED, (0, 0, 20, 20))  # left half red
    exif = Image.Exif()
    exif[0x0112] = 6  # must be rotated by 90° clockwise
    upright.rotate(90, expand=True).save(tmp_path / "photo.png", exif=exif)
    with Image.open(tmp_path / "photo.png") as photo:
        assert photo.size == (20, 40)
        turned = to_rgb(photo)
    assert turned.size == (40, 20) and turned.getpixel((5, 10)) == RED and turned.getpixel((35, 10)) == (0, 0, 255)


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 2)])
def test_extreme_shapes(tiny_processor: Any, size: tuple[int, int]) -> None:
    pixels = tiny_processor.preprocess([Image.new("RGB", size, RED)])
    assert pixels.shape == (1, 3, 32, 32)
    assert torch.allclose(pixels, pixels[:, :, :1, :1].expand_as(pixels))


def test_unreadable_images_are_named(tiny_processor: Any, tmp_path: Path) -> None:
    fetch = tiny_processor.image_processor.fetch_images
    (tmp_path / "empty.jpg").write_bytes(b"")
    noise().save(tmp_path / "complete.png")
    (tmp_path / "truncated.png").write_bytes((tmp_path / "complete.png").read_bytes()[:500])
    (tmp_path / "directory.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")  # reading it would block forever
    for name in ("empty.jpg", "truncated.png", "absent.png", "directory.png", "pipe.png"):
        with pytest.raises(ValueError, match=f"{name} cannot be read as an image"):
            fetch(tmp_path / name)
    for url in ("https://example.com/cat.jpg", "data:image/png;base64,AAAA"):
        with pytest.raises(ValueError, match="images are not fetched from URLs"):
            tiny_processor(text="<image>", images=url)
    with pytest.raises(TypeError, match="an image must be a Pillow image"):
        fetch(7)


def test_arrays_are_accepted_as_images(tiny_processor: Any) -> None:
    image = noise()
    batch = tiny_processor(text="<image>", images=np.asarray(image), return_tensors="pt")
    assert torch.equal(batch["pixel_values"], tiny_processor.preprocess([image]))


# --- text ---


def test_placeholder_is_expanded_and_no_other_token_is_added(tiny_processor: Any) -> None:
    batch = tiny_processor(text="<s>a<image>b<image>", images=[noise(), noise()], return_tensors="pt")
    ids = batch["input_ids"][0].tolist()
    letters = tiny_processor.tokenizer.convert_tokens_to_ids(["a", "b"])
    assert ids == [1, letters[0], *[IMAGE] * 4, letters[1], *[IMAGE] * 4]
    assert batch["pixel_values"].shape == (2, 3, 32, 32)


def test_batch_with_different_numbers_of_images_is_padded_on_the_left(tiny_processor: Any) -> None:
    images = [[noise(seed=1), noise(seed=2)], [noise(seed=3)], []]
    texts = ["<image><image>a", "<image>b", "c"]
    batch = tiny_processor(text=texts, images=images, padding=True, return_tensors="pt")
    assert (batch["input_ids"] == IMAGE).sum(dim=1).tolist() == [8, 4, 0]
    assert batch["attention_mask"].sum(dim=1).tolist() == [9, 5, 1] and (batch["input_ids"][:, -1] != 0).all()
    assert torch.equal(batch["pixel_values"], tiny_processor.preprocess([*images[0], *images[1]]))
    assert "pixel_values" not in tiny_processor(text="c", images=[])
    assert "pixel_values" not in tiny_processor(text=["c", "d"], images=[[], []])


@pytest.mark.parametrize(
    "text, count, message",
    [
        ("<image><image>", 1, "2 <image> tokens and 1 images"),
        ("<image>", 2, "1 <image> tokens and 2 images"),
        ("none", 1, "0 <image> tokens and 1 images"),
        ("<image>", None, "Found 1 <image> tokens in the text but no images"),
    ],
)
def test_images_and_placeholders_must_match(tiny_processor: Any, text: str, count: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_processor(text=text, images=None if count is None else [noise()] * count)


def test_images_and_placeholders_must_match_in_every_text(tiny_processor: Any) -> None:
    with pytest.raises(ValueError, match=r"texts have \[2, 0\] <image> placeholders, but \[1, 1\] images were given"):
        tiny_processor(text=["<image><image>", "a"], images=[[noise()], [noise()]])


MESSAGES: Any = [
    {"role": "user", "content": [{"type": "image", "image": noise()}, {"type": "text", "text": "What is it?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "A cat"}]},
    {"role": "user", "content": [{"type": "text", "text": "Sure?"}]},
]


def test_chat_template_renders_the_conversation(tiny_processor: Any) -> None:
    text = tiny_processor.apply_chat_template(MESSAGES, add_generation_prompt=True)
    assert text.startswith("<s>") and text.count("<image>") == 1
    assert text.endswith("\nHuman: <image>\nHuman: What is it?\nAI: A cat</s>\nHuman: Sure?\nAI:")
    batch = tiny_processor.apply_chat_template(MESSAGES, tokenize=True, return_dict=True, return_tensors="pt")
    assert (batch["input_ids"] == IMAGE).sum() == 4 and (batch["input_ids"] == 1).sum() == 1
    assert batch["pixel_values"].shape == (1, 3, 32, 32)


@pytest.mark.parametrize(
    "content", ["Be short.", [{"type": "text", "text": "Be "}, {"type": "text", "text": "short."}]]
)
def test_system_message_replaces_the_default(tiny_processor: Any, content: Any) -> None:
    messages = [{"role": "system", "content": content}, {"role": "user", "content": "Hello"}]
    text = tiny_processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == "<s>Be short.\nHuman: Hello\nAI:"


def test_supervised_tokens_are_the_answers_and_their_end_tokens(tiny_processor: Any) -> None:
    batch = tiny_processor.apply_chat_template(
        MESSAGES[:2], tokenize=True, return_dict=True, return_assistant_tokens_mask=True, return_tensors="pt"
    )
    supervised = batch["input_ids"][0][batch["assistant_masks"][0].bool()]
    assert tiny_processor.tokenizer.decode(supervised) == " A cat</s>"


# --- building from backbones, and saving ---


def test_normalisation_and_size_are_taken_from_the_vision_model(tiny_backbones: Path, tmp_path: Path) -> None:
    for file in (tiny_backbones / "vision").iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "preprocessor_config.json").unlink()
    CLIPImageProcessorPil(image_mean=[0.5, 0.5, 0.5], image_std=[0.25, 0.25, 0.25]).save_pretrained(tmp_path)
    processor = HoneybeeProcessor.from_backbones(tmp_path, tiny_backbones / "llm", 4)
    white = processor.preprocess([Image.new("RGB", (9, 9), "white")])
    assert torch.equal(white, torch.full((1, 3, 32, 32), 2.0))
    larger = HoneybeeProcessor.from_backbones(tmp_path, tiny_backbones / "llm", 4, image_size=64)
    assert larger.preprocess([noise()]).shape == (1, 3, 64, 64)


def test_saving_and_loading(tiny_processor: Any, tiny_model: Any, tmp_path: Path) -> None:
    tiny_model.save_pretrained(tmp_path)
    tiny_processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(loaded, HoneybeeProcessor) and isinstance(loaded.image_processor, HoneybeeImageProcessor)
    assert isinstance(AutoImageProcessor.from_pretrained(tmp_path), HoneybeeImageProcessor)
    assert loaded.chat_template == tiny_processor.chat_template and loaded.tokenizer.padding_side == "left"
    given = {"text": ["<s>a<image>b", "c"], "images": [noise()], "padding": True, "return_tensors": "pt"}
    before, after = tiny_processor(**given), loaded(**given)
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def test_custom_chat_template_is_saved(tiny_backbones: Path, tmp_path: Path) -> None:
    template = "{{ messages[0].content[0].text }}!"
    processor = HoneybeeProcessor.from_backbones(
        tiny_backbones / "vision", tiny_backbones / "llm", 4, chat_template=template
    )
    processor.save_pretrained(tmp_path)
    loaded = HoneybeeProcessor.from_pretrained(tmp_path)
    greeting: Any = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    assert loaded.apply_chat_template(greeting) == "Hi!"
