"""Converts images to pixel_values and texts to input_ids, with M image tokens for each `<image>` placeholder."""

import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    BatchFeature,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from model.configuration import HoneybeeConfig
from model.image_fit import FITS, Fit, fit_image, padding_colour
from model.load_backbones import image_token_id, token_rows
from pipelines.core.errors import ImageRefError
from pipelines.images.decode import decode, to_rgb
from pipelines.images.references import MAX_BYTES
from pipelines.schema import IMAGE_TOKEN
from pipelines.tokens.chat_style import load_chat_template
from pipelines.tokens.plain_text import PlainTextTokenizer


def open_image(path: str | Path) -> Image.Image:
    """Opens and decodes a local image in one of the formats of pipelines.images.table, without changing mode or
    orientation.

    Raises ValueError, naming the path, for a URL and for a file that cannot be read as an image.
    """
    if "://" in str(path) or str(path).startswith("data:"):
        raise ValueError(f"images are not fetched from URLs: open {str(path)[:80]} yourself and pass the image")
    try:
        file = Path(path)
        if file.exists() and not file.is_file():
            raise ValueError(f"{path} cannot be read as an image: it is not a file")
        if file.stat().st_size > MAX_BYTES:
            raise ValueError(f"{path} cannot be read as an image: it has more than {MAX_BYTES} bytes")
        return decode(file.read_bytes())
    except (OSError, ImageRefError) as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from None


# Steps that this processor always performs; transformers would allow callers to disable them.
_ALWAYS = {
    "do_convert_rgb": True,
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "resample": Image.Resampling.BICUBIC,
    "rescale_factor": 1 / 255,
}


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


class HoneybeeImageProcessor(PilBackend):
    """Fits images of any size to S×S, then normalises them as CLIP does.

    fit: the method, see model/image_fit.py; `stretch`, a direct bicubic resize, is the authors' preprocessing. It is
    saved with the other settings. Raises ValueError for an unknown fit, for a fit other than `stretch` with a size that
    is not square, for a mean or standard deviation that is not three numbers, and for a disabled step; TypeError if a
    single call requests preprocessing that differs from the one in training.
    """

    resample = Image.Resampling.BICUBIC
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    size: Any = {"height": 224, "width": 224}
    do_convert_rgb = True
    do_resize = True
    do_rescale = True
    do_normalize = True

    def __init__(self, fit: Fit = "stretch", **kwargs: Any):
        super().__init__(**kwargs)
        if fit not in FITS:
            raise ValueError(f"fit is {fit!r}, but must be one of {', '.join(FITS)}")
        if fit != "stretch" and self.size.height != self.size.width:
            raise ValueError(f"fit {fit} needs a square size, found {self.size.height} × {self.size.width}")
        self.fit = fit
        for name in ("height", "width"):
            if not isinstance(side := getattr(self.size, name), int) or side < 1:
                raise ValueError(f"size.{name} must be a positive number of pixels, found {side!r}")
        for name in ("image_mean", "image_std"):
            values = getattr(self, name)
            if not isinstance(values, list | tuple) or len(values) != 3 or not all(map(_is_finite, values)):
                raise ValueError(f"{name} must be three finite numbers, found {values!r}")
        if min(self.image_std) <= 0:
            raise ValueError(f"image_std must be greater than 0, found {self.image_std!r}")
        for name, value in _ALWAYS.items():
            if getattr(self, name) != value:
                raise ValueError(f"{name} is {getattr(self, name)!r}, but this processor supports only {value!r}")

    def to_tensor(self, images: list[Image.Image]) -> Tensor:
        """Converts n images of any size and mode to (n, 3, S, S), fp32; the fast path for data loaders."""
        size = (self.size.width, self.size.height)
        pixels = np.empty((len(images), size[1], size[0], 3), dtype=np.uint8)
        colour = padding_colour(self.image_mean)
        for row, image in zip(pixels, images, strict=True):
            row[:] = np.asarray(fit_image(to_rgb(image), size, self.fit, colour))
        mean, std = torch.tensor(self.image_mean), torch.tensor(self.image_std)
        tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        return tensor.sub_((mean * 255).view(3, 1, 1)).div_((std * 255).view(3, 1, 1))

    def fetch_images(self, images: Any) -> Any:
        """Opens local files with `pipelines.images.decode.decode` and never accesses the network. Raises ValueError,
        naming the file, for a URL or an unreadable image; TypeError for an object that is not an image."""
        if isinstance(images, list | tuple):
            return [self.fetch_images(image) for image in images]
        if isinstance(images, str | Path):
            return open_image(images)
        if isinstance(images, np.ndarray):
            return Image.fromarray(images)
        if isinstance(images, Image.Image):
            try:
                images.load()  # Pillow decodes the file only now
            except (OSError, ValueError, SyntaxError) as error:
                name = getattr(images, "filename", "") or "a given image"
                raise ValueError(f"{name} cannot be read as an image: {error}") from None
        else:
            kind = type(images).__name__
            raise TypeError(f"an image must be a Pillow image, an array (H, W, 3) or a path, not {kind}")
        return images

    def _preprocess_image_like_inputs(  # type: ignore[override]
        self, images: Any, *args: Any, **kwargs: Any
    ) -> BatchFeature:
        for name in ("size", "image_mean", "image_std", *_ALWAYS):
            if name in kwargs and kwargs[name] not in (None, getattr(self, name)):
                raise TypeError(
                    f"{name} cannot be overridden in a call: the model would see images unlike those in training"
                )
        images = self._prepare_images_structure(images)
        return BatchFeature({"pixel_values": self.to_tensor(images)}, tensor_type=kwargs.get("return_tensors"))


class HoneybeeProcessor(ProcessorMixin):
    """Combines tokenizer and image processor; saved and loaded with the model.

    num_image_tokens: number of image tokens per `<image>` (config.num_image_tokens of the model). Text is tokenised
    unchanged; the chat template adds the begin token. Raises ValueError, stating both counts, if the number of images
    differs from that of `<image>` placeholders: over all texts, or per text if there is a list of images for each.
    """

    text_kwargs = {"add_special_tokens": False}

    def __init__(
        self,
        image_processor: HoneybeeImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        num_image_tokens: int,
        chat_template: str | None = None,
    ):
        self.num_image_tokens = num_image_tokens
        self.image_token = IMAGE_TOKEN
        self.image_token_id = image_token_id(tokenizer)
        tokenizer.padding_side = "left"  # batched generation continues from the last token of every row
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    @classmethod
    def from_backbones(
        cls,
        vision: str | Path,
        tokenizer: PreTrainedTokenizerBase | str | Path,
        num_image_tokens: int,
        image_size: int | None = None,
        image_fit: Fit = "stretch",
        chat_template: str | None = None,
    ) -> "HoneybeeProcessor":
        """Builds the processor of a model that is made of the same parts.

        vision: supplies mean, standard deviation and, if image_size is None, S. tokenizer: must have `<image>`.
        image_fit: see HoneybeeImageProcessor. chat_template: the template's text; None: templates/chat/honeybee.jinja.
        """
        if image_size is None:
            config = AutoConfig.from_pretrained(vision, trust_remote_code=False)
            image_size = getattr(config, "vision_config", config).image_size
        own = AutoImageProcessor.from_pretrained(vision, backend="pil", trust_remote_code=False)
        image_processor = HoneybeeImageProcessor(
            image_fit,
            size={"height": image_size, "width": image_size},
            image_mean=own.image_mean,
            image_std=own.image_std,
        )
        if chat_template is None:
            chat_template = load_chat_template("honeybee").text
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            tokenizer = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
        tokenizer.chat_template = chat_template
        return cls(image_processor, tokenizer, num_image_tokens, chat_template)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Loads as in transformers, but never runs code that is stored next to a tokenizer, or offers to run it."""
        return super().from_pretrained(*args, **{"trust_remote_code": False, **kwargs})

    def check_model(self, config: HoneybeeConfig) -> None:
        """Raises ValueError if a model with this configuration cannot take the outputs of this processor."""
        size = (self.image_processor.size.height, self.image_processor.size.width)
        takes = (config.vision_config.image_size,) * 2
        rows, tokens = config.text_config.vocab_size, token_rows(self.tokenizer)
        if self.num_image_tokens != config.num_image_tokens:
            raise ValueError(
                f"num_image_tokens is {self.num_image_tokens!r} in processor_config.json, but an image has "
                f"{config.num_image_tokens} tokens according to config.json"
            )
        if self.image_token_id != config.image_token_id:
            raise ValueError(
                f"{self.image_token} has id {self.image_token_id} in the tokenizer, but image_token_id is "
                f"{config.image_token_id!r} in config.json"
            )
        if tokens > rows:
            raise ValueError(f"the tokenizer has {tokens} tokens, but text_config.vocab_size in config.json is {rows}")
        if size != takes:
            raise ValueError(f"the image size is {size} in processor_config.json, but {takes} in config.json")
        message: Any = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}
        written = self.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
        if written.count(self.image_token) != 1:
            raise ValueError(
                f"the chat template must write {self.image_token} once for an image, but writes it "
                f"{written.count(self.image_token)} times"
            )

    @functools.cached_property
    def plain_text(self) -> PlainTextTokenizer:
        """Tokenises conversations without reading control tokens in their texts."""
        return PlainTextTokenizer(self.tokenizer.backend_tokenizer)

    def preprocess(self, images: list[Image.Image]) -> Tensor:
        """Converts n images to pixel_values (n, 3, S, S), fp32; the fast path for data loaders."""
        return self.image_processor.to_tensor(images)

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **kwargs: Any) -> str:
        return self.image_token * self.num_image_tokens

    def prepare_inputs_layout(self, images: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        return super().prepare_inputs_layout(images=_none_if_empty(images), **kwargs)

    def validate_inputs(  # type: ignore[override]
        self, images: Any = None, text: Any = None, **kwargs: Any
    ) -> None:
        if isinstance(images, list) and isinstance(images[0], list) and isinstance(text, list):
            placeholders = [sample.count(self.image_token) for sample in text]
            given = [len(sample) for sample in images]
            if placeholders != given:
                raise ValueError(
                    f"the texts have {placeholders} {self.image_token} placeholders, but {given} images were given"
                )
        super().validate_inputs(images=images, text=text, **kwargs)


def _none_if_empty(images: Any) -> Any:
    """Returns None if there are no images: for an empty list or for a batch of empty lists."""
    if isinstance(images, list) and all(isinstance(sample, list) and not sample for sample in images):
        return None
    return images


AutoImageProcessor.register(HoneybeeConfig, image_processor_classes={"pil": HoneybeeImageProcessor})
AutoProcessor.register(HoneybeeConfig, HoneybeeProcessor)
