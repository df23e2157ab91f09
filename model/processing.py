"""Images to pixel_values, and text with `<image>` places to input_ids with M image tokens in each."""

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
from model.image_fit import FITS, Fit, bar_colour, fitted
from model.pretrained import IMAGE_TOKEN, image_token_id, token_rows
from pipelines.image_error import ImageRefError
from pipelines.images import MAX_BYTES, decode, to_rgb

CHAT_TEMPLATES = Path(__file__).parent.parent / "templates" / "chat"


def open_image(path: str | Path) -> Image.Image:
    """A local picture of the formats of pipelines.images, read whole, in its own mode and orientation.

    Raises ValueError, naming it, for a URL and for what is no picture that can be read.
    """
    if "://" in str(path) or str(path).startswith("data:"):
        raise ValueError(f"images are not fetched from addresses: open {str(path)[:80]} and give the image")
    try:
        file = Path(path)
        if file.exists() and not file.is_file():
            raise ValueError(f"{path} is no image that can be read: it is no file")
        if file.stat().st_size > MAX_BYTES:
            raise ValueError(f"{path} is no image that can be read: more than {MAX_BYTES} bytes")
        return decode(file.read_bytes())
    except (OSError, ImageRefError) as error:
        raise ValueError(f"{path} is no image that can be read: {error}") from None


# What this processor always does; transformers would let it be switched off.
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
    """Any image to S×S, then CLIP's normalisation.

    fit: how, see model/image_fit.py; `stretch`, a straight bicubic resize, is the authors' preprocessing. Saved with
    all else. Raises ValueError for a fit that is none of the three, for one but `stretch` with a size that is no
    square, for a mean or deviation that is not three numbers, and for a step that is switched off; TypeError where a
    single call asks for another image than the model learned from.
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
            raise ValueError(f"fit is {fit!r}, which is none of {', '.join(FITS)}")
        if fit != "stretch" and self.size.height != self.size.width:
            raise ValueError(f"fit {fit} makes squares, but size is {self.size.height} × {self.size.width}")
        self.fit = fit
        for name in ("height", "width"):
            if not isinstance(side := getattr(self.size, name), int) or side < 1:
                raise ValueError(f"size.{name} is {side!r}, and must be a number of pixels")
        for name in ("image_mean", "image_std"):
            values = getattr(self, name)
            if not isinstance(values, list | tuple) or len(values) != 3 or not all(map(_is_finite, values)):
                raise ValueError(f"{name} is {values!r}, and must be three numbers")
        if min(self.image_std) <= 0:
            raise ValueError(f"image_std is {self.image_std!r}, and must be above 0")
        for name, value in _ALWAYS.items():
            if getattr(self, name) != value:
                raise ValueError(f"{name} is {getattr(self, name)!r}: this processor has only {value!r}")

    def to_tensor(self, images: list[Image.Image]) -> Tensor:
        """n images of any size and mode → (n, 3, S, S), fp32; the fast path, for data loaders."""
        size = (self.size.width, self.size.height)
        pixels = np.empty((len(images), size[1], size[0], 3), dtype=np.uint8)
        colour = bar_colour(self.image_mean)
        for place, image in zip(pixels, images, strict=True):
            place[:] = np.asarray(fitted(to_rgb(image), size, self.fit, colour))
        mean, std = torch.tensor(self.image_mean), torch.tensor(self.image_std)
        tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        return tensor.sub_((mean * 255).view(3, 1, 1)).div_((std * 255).view(3, 1, 1))

    def fetch_images(self, images: Any) -> Any:
        """Opens local files, as `pipelines.images.decode`; never the network. Raises ValueError for a URL, and by name
        for a file that is no readable image; TypeError for what is no image at all."""
        if isinstance(images, list | tuple):
            return [self.fetch_images(image) for image in images]
        if isinstance(images, str | Path):
            return open_image(images)
        if isinstance(images, np.ndarray):
            return Image.fromarray(images)
        if isinstance(images, Image.Image):
            try:
                images.load()  # one that was opened only now meets its file
            except (OSError, ValueError, SyntaxError) as error:
                name = getattr(images, "filename", "") or "an image that was given"
                raise ValueError(f"{name} is no image that can be read: {error}") from None
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
                    f"{name} cannot be changed for one call: the model would see what it did not learn from"
                )
        images = self._prepare_images_structure(images)
        return BatchFeature({"pixel_values": self.to_tensor(images)}, tensor_type=kwargs.get("return_tensors"))


class HoneybeeProcessor(ProcessorMixin):
    """Tokenizer and image processor in one; saved and loaded with the model.

    num_image_tokens: what one `<image>` in a text becomes (config.num_image_tokens of the model). Text is tokenised
    as it is: the chat template writes the begin token. Raises ValueError, with both counts, where the images are not
    as many as the `<image>` places, over all texts or, if images are given as a list per text, in one of them.
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
        tokenizer.padding_side = "left"  # so that batched generation goes on from the last token of every row
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
        """The processor of a model from the same parts.

        vision: mean, standard deviation and S (if image_size is None) are taken from it. tokenizer: one that has
        `<image>`. image_fit: see HoneybeeImageProcessor. chat_template: the text of one; templates/chat/honeybee.jinja
        where absent.
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
            chat_template = (CHAT_TEMPLATES / "honeybee.jinja").read_text()
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            tokenizer = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
        tokenizer.chat_template = chat_template
        return cls(image_processor, tokenizer, num_image_tokens, chat_template)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, but code that lies beside a tokenizer is not run, nor offered."""
        return super().from_pretrained(*args, **{"trust_remote_code": False, **kwargs})

    def check_model(self, config: HoneybeeConfig) -> None:
        """Raises ValueError unless what this makes of pictures and texts is what a model of that `config` takes."""
        size = (self.image_processor.size.height, self.image_processor.size.width)
        takes = (config.vision_config.image_size,) * 2
        rows, tokens = config.text_config.vocab_size, token_rows(self.tokenizer)
        if self.num_image_tokens != config.num_image_tokens:
            raise ValueError(
                f"processor_config.json has num_image_tokens {self.num_image_tokens!r}, and by config.json an image "
                f"has {config.num_image_tokens} tokens"
            )
        if self.image_token_id != config.image_token_id:
            raise ValueError(
                f"{self.image_token} is token {self.image_token_id} of the tokenizer, and config.json has "
                f"image_token_id {config.image_token_id!r}"
            )
        if tokens > rows:
            raise ValueError(f"the tokenizer has {tokens} tokens, and the language model by config.json only {rows}")
        if size != takes:
            raise ValueError(f"processor_config.json makes images of {size}, and config.json's encoder takes {takes}")
        message: Any = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}
        written = self.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
        if written.count(self.image_token) != 1:
            raise ValueError(
                f"the chat template writes one image as {written.count(self.image_token)} {self.image_token}"
            )

    def preprocess(self, images: list[Image.Image]) -> Tensor:
        """n images → pixel_values (n, 3, S, S), fp32; the fast path, for data loaders."""
        return self.image_processor.to_tensor(images)

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **kwargs: Any) -> str:
        return self.image_token * self.num_image_tokens

    def prepare_inputs_layout(self, images: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        return super().prepare_inputs_layout(images=_none_if_empty(images), **kwargs)

    def validate_inputs(  # type: ignore[override]
        self, images: Any = None, text: Any = None, **kwargs: Any
    ) -> None:
        if isinstance(images, list) and isinstance(images[0], list) and isinstance(text, list):
            places = [sample.count(self.image_token) for sample in text]
            given = [len(sample) for sample in images]
            if places != given:
                raise ValueError(f"the texts have {places} places {self.image_token}, but {given} images were given")
        super().validate_inputs(images=images, text=text, **kwargs)


def _none_if_empty(images: Any) -> Any:
    """None for no images at all, be they none in one list or none in every list of a batch."""
    if isinstance(images, list) and all(isinstance(sample, list) and not sample for sample in images):
        return None
    return images


AutoImageProcessor.register(HoneybeeConfig, image_processor_classes={"pil": HoneybeeImageProcessor})
AutoProcessor.register(HoneybeeConfig, HoneybeeProcessor)
