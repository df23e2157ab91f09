"""Images to pixel_values, and text with `<image>` places to input_ids with M image tokens in each."""

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
from model.pretrained import IMAGE_TOKEN, image_token_id
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


class HoneybeeImageProcessor(PilBackend):
    """Any image to S×S, then CLIP's normalisation.

    fit: how, see model/image_fit.py; `stretch`, a straight bicubic resize, is the authors' preprocessing. Saved with
    all else. Raises ValueError for a fit that is none of the three, and for one but `stretch` with a size that is no
    square.
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
            config = AutoConfig.from_pretrained(vision)
            image_size = getattr(config, "vision_config", config).image_size
        own = AutoImageProcessor.from_pretrained(vision, backend="pil")
        image_processor = HoneybeeImageProcessor(
            image_fit,
            size={"height": image_size, "width": image_size},
            image_mean=own.image_mean,
            image_std=own.image_std,
        )
        if chat_template is None:
            chat_template = (CHAT_TEMPLATES / "honeybee.jinja").read_text()
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        tokenizer.chat_template = chat_template
        return cls(image_processor, tokenizer, num_image_tokens, chat_template)

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
