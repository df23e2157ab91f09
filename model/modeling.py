"""Honeybee: vision encoder → projector → language model (paper section 3.1)."""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationMixin,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import torch_compilable_check

from model import load_backbones
from model.configuration import HoneybeeConfig
from model.projectors import PROJECTORS, Projector, Shape, build_projector
from pipelines.core.tensors_only import tensors_only

# Encoders whose forward pass is embeddings → (norm) → layers, so that it can stop after the layer that is read.
CLIP_LIKE = {"clip_vision_model", "siglip_vision_model"}


@dataclass
class HoneybeeOutput(CausalLMOutputWithPast):
    """Output of the model. image_hidden_states: visual tokens, (num_images, M, D), if images were given."""

    image_hidden_states: Tensor | None = None


class HoneybeeForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """The Honeybee model with its three parts `vision`, `projector` and `llm`."""

    config_class = HoneybeeConfig
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True
    _no_split_modules = [cls.__name__ for cls in PROJECTORS.values()]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: HoneybeeConfig):
        super().__init__(config)
        self.vision = AutoModel.from_config(config.vision_config)
        self.projector = build_projector_from_config(config)
        self.llm = AutoModelForCausalLM.from_config(config.text_config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, Projector):  # all other modules belong to parts that initialise themselves
            module.initialize()

    def get_input_embeddings(self) -> nn.Module:
        return self.llm.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.llm.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.llm.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.llm.set_output_embeddings(value)

    def get_decoder(self) -> nn.Module:
        return self.llm.get_decoder()

    def get_vision_features(self, pixel_values: Tensor) -> Tensor:
        """pixel_values: (n, 3, S, S) → patch features of hidden_states[vision_layer], (n, N, C), without class token.

        Layers above that one do not run, and no autograd graph is recorded if all encoder parameters are frozen.
        """
        config, vision = self.config, self.vision
        trained = any(parameter.requires_grad for parameter in vision.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and trained):
            pixel_values = pixel_values.to(dtype=vision.dtype)
            if config.vision_config.model_type in CLIP_LIKE:
                hidden = vision.embeddings(pixel_values)
                if hasattr(vision, "pre_layrnorm"):
                    hidden = vision.pre_layrnorm(hidden)
                for layer in islice(vision.encoder.layers, config.num_vision_layers):
                    hidden = layer(hidden, None)
            else:
                hidden = vision(pixel_values, output_hidden_states=True).hidden_states[config.vision_layer]
        return hidden[:, -config.num_features :]

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """pixel_values: (n, 3, S, S), n may be 0 → visual tokens (n, M, D)."""
        if len(pixel_values) == 0:  # run on a blank image: ranks with sharded parameters must make the same calls
            return self.get_image_features(pixel_values.new_zeros(1, *pixel_values.shape[1:]))[:0]
        features = self.get_vision_features(pixel_values)
        return self.projector(features.to(next(self.projector.parameters()).dtype))

    def embed(
        self, input_ids: Tensor | None, pixel_values: Tensor | None, inputs_embeds: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Returns the language model's input, (B, T, D), with visual tokens in place of image tokens, and the visual
        tokens. Raises ValueError, stating both counts, if the image tokens do not match the images."""
        embedding = self.get_input_embeddings()
        if inputs_embeds is None:
            inputs_embeds = embedding(input_ids)
            is_image = input_ids == self.config.image_token_id
        else:
            image_embedding = embedding(torch.tensor(self.config.image_token_id, device=inputs_embeds.device))
            is_image = (inputs_embeds == image_embedding).all(dim=-1)
        if pixel_values is None:
            torch_compilable_check(
                ~is_image.any(), lambda: f"found {int(is_image.sum())} image tokens but 0 images: pass pixel_values"
            )
            return inputs_embeds, None
        tokens = self.get_image_features(pixel_values)
        images, per_image = tokens.shape[:2]
        in_rows = is_image.sum(dim=1)
        torch_compilable_check(
            in_rows.sum() == images * per_image,
            lambda: (
                f"found {int(in_rows.sum())} image tokens for {images} images: with {per_image} tokens per image "
                f"there must be {images * per_image}"
            ),
        )
        torch_compilable_check(
            (in_rows % per_image == 0).all(),
            lambda: (
                f"the rows contain {in_rows.tolist()} image tokens: each count must be a multiple of {per_image}, "
                "the number of tokens per image"
            ),
        )
        tokens = tokens.to(inputs_embeds.device, inputs_embeds.dtype)
        return inputs_embeds.masked_scatter(is_image.unsqueeze(-1), tokens), tokens

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: int | Tensor | None = None,
        return_logits: bool = False,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> HoneybeeOutput:
        """Runs one forward pass.

        input_ids: (B, T) with config.num_image_tokens consecutive image tokens per image; or inputs_embeds: (B, T, D).
        pixel_values: (num_images, 3, S, S), in the order of their image tokens, row by row. In training, pass an empty
        (0, 3, S, S) for a batch without images, so that the projector has a (zero) gradient on every rank.
        attention_mask: (B, T), or any form that the language model accepts, such as a 4-D mask for packed sequences.
        labels: (B, T), aligned with input_ids; -100 marks unsupervised tokens. The loss is the mean cross-entropy over
        the supervised tokens, or their sum divided by num_items_in_batch. With labels, logits are computed only for
        supervised positions and are not returned, unless return_logits is set.

        Raises ValueError if image tokens and images do not match, or if not exactly one of the two inputs is given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass exactly one of input_ids and inputs_embeds")
        tokens = None
        if past_key_values is None or past_key_values.get_seq_length() == 0 or pixel_values is not None:
            inputs_embeds, tokens = self.embed(input_ids, pixel_values, inputs_embeds)
        elif inputs_embeds is None:  # decoding: the prefill has already processed the images
            inputs_embeds = self.get_input_embeddings()(input_ids)

        if labels is not None:
            targets = F.pad(labels[:, 1:], (0, 1), value=-100)  # position t predicts token t + 1
            supervised = targets != -100
            kwargs.setdefault("use_cache", False)
            logits_to_keep = 0 if return_logits else supervised
        outputs = self.llm(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )
        loss, logits = None, outputs.logits
        if labels is not None:
            supervised_logits = logits[supervised] if return_logits else logits
            loss = F.cross_entropy(supervised_logits.float(), targets[supervised], reduction="sum")
            # a batch without supervised tokens has loss 0, not 0 / 0
            loss = loss / (supervised.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch)
        return HoneybeeOutput(
            loss=loss,
            logits=logits if labels is None or return_logits else None,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=tokens,
        )

    def _expand_inputs_for_generation(  # type: ignore[override, misc]
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Any = None, **kwargs: Any
    ) -> Any:
        # Rows are repeated for beams and for multiple answers; the images of a row must be repeated as a group.
        pixel_values = kwargs.pop("pixel_values", None)
        if pixel_values is not None and expand_size > 1:
            if input_ids is None or input_ids.shape[1] == 0:
                raise ValueError("beam search and multiple answers need input_ids, to assign the images to rows")
            per_row = (input_ids == self.config.image_token_id).sum(dim=1) // self.config.num_image_tokens
            of_rows = pixel_values.split(per_row.tolist())
            pixel_values = torch.cat([images for images in of_rows for _ in range(expand_size)])
        input_ids, kwargs = super()._expand_inputs_for_generation(  # type: ignore[misc]
            expand_size, is_encoder_decoder, input_ids, **kwargs
        )
        return input_ids, kwargs if pixel_values is None else {**kwargs, "pixel_values": pixel_values}

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Loads as in transformers, but strictly: raises ValueError, naming the keys, for weights that are missing,
        unexpected, of the wrong shape or not finite."""
        report = kwargs.pop("output_loading_info", False)
        lenient = kwargs.get("ignore_mismatched_sizes", False)
        kwargs["ignore_mismatched_sizes"] = True  # reported below, together with the key
        with tensors_only(args[0] if args else "the model"):
            loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model, info = loaded
        problems = [f"missing {key}" for key in sorted(info["missing_keys"])]
        problems += [f"unexpected {key}" for key in sorted(info["unexpected_keys"])]
        if not lenient:
            problems += [
                f"{key} has shape {tuple(found)}, but the model expects {tuple(expected)}"
                for key, found, expected in sorted(info["mismatched_keys"])
            ]
        problems += [
            f"{key} contains non-finite values"
            for key, tensor in model.state_dict().items()
            if not tensor.is_meta and tensor.is_floating_point() and not torch.isfinite(tensor).all()
        ]
        if problems:
            shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
            raise ValueError(f"the weights of {args[0] if args else 'the model'} do not fit: {shown}")
        return (model, info) if report else model

    @classmethod
    def from_backbones(
        cls,
        vision: str | Path,
        llm: str | Path,
        projector: dict[str, Any],
        tokenizer: PreTrainedTokenizerBase | str | Path,
        vision_layer: int = -2,
        image_size: int | None = None,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> "HoneybeeForConditionalGeneration":
        """Builds an untrained model from pre-trained parts and a projector that is initialised from `seed`.

        vision, llm: directories or hub names of a CLIP-like model (or only its vision encoder) and of a causal
        language model. projector: as in HoneybeeConfig. tokenizer: must have `<image>`; the language model's embeddings
        are extended if it has more tokens. image_size: S; the encoder's position embeddings are interpolated if it
        differs from theirs. It has more than six parameters because callers choose each independently, as with
        the keyword arguments of from_pretrained. Raises ValueError if the parts do not fit together, OSError if one is
        not found.
        """
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            tokenizer = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
        image_token_id = load_backbones.image_token_id(tokenizer)
        encoder = load_backbones.load_vision(vision, image_size, dtype)
        language_model = load_backbones.load_llm(llm, tokenizer, dtype)
        for part in (encoder, language_model):
            part.config.name_or_path = ""  # do not record local paths in the new model
        config = HoneybeeConfig(
            vision_config=encoder.config,
            text_config=language_model.config,
            projector=projector,
            vision_layer=vision_layer,
            image_token_id=image_token_id,
        )
        with torch.device("meta"):
            model = cls(config)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model.projector = build_projector_from_config(config).to(dtype)
        model.vision, model.llm = encoder, language_model
        model.generation_config = load_backbones.generation_config(tokenizer, image_token_id)
        return model.eval()


def build_projector_from_config(config: HoneybeeConfig) -> Projector:
    """Builds the projector that a configuration describes, with initialised weights."""
    shape = Shape(
        num_features=config.num_features,
        num_tokens=config.projector["num_tokens"],
        encoder_width=config.vision_config.hidden_size,
        output_width=config.text_config.hidden_size,
    )
    return build_projector(config.projector["type"], shape, config.projector["settings"])


AutoModelForImageTextToText.register(HoneybeeConfig, HoneybeeForConditionalGeneration)
