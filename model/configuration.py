"""Configuration of a Honeybee model: a vision encoder, a projector and a language model (paper section 3.1)."""

from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec


class HoneybeeConfig(PreTrainedConfig):
    """Configuration of HoneybeeForConditionalGeneration.

    vision_config, text_config: any CLIP-like vision encoder and any causal language model that transformers supports.
    projector: `type` (a name in model.projectors), `num_tokens` (M, the number of visual tokens per image) and
    `settings` (specific to the type; all have defaults). vision_layer: index of the encoder's hidden_states that the
    projector reads; the paper uses the second to last. image_token_id: placeholder of one visual token in input_ids.

    Raises ValueError if the parts do not fit together.
    """

    model_type = "honeybee"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="clip_vision_model"),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama"),
    }

    vision_config: Any = None  # a configuration object, or a dict that includes its model_type
    text_config: Any = None
    projector: Any = None
    vision_layer: int = -2
    image_token_id: int = 0

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        projector = {"type": "c-abstractor", "num_tokens": 144, "settings": {}, **(self.projector or {})}
        unknown = sorted(set(projector) - {"type", "num_tokens", "settings"})
        if unknown:
            raise ValueError(f"projector has unknown keys {unknown}: use only type, num_tokens and settings")
        if type(projector["num_tokens"]) is not int or projector["num_tokens"] < 1:
            raise ValueError(f"projector.num_tokens must be a positive integer, found {projector['num_tokens']!r}")
        if not isinstance(projector["settings"], dict):
            raise ValueError(f"projector.settings must be an object, found {projector['settings']!r}")
        self.projector = projector
        layers = self.vision_config.num_hidden_layers
        if not -layers - 1 <= self.vision_layer <= layers:
            raise ValueError(
                f"vision_layer is {self.vision_layer}, but the vision encoder has {layers} layers: "
                f"choose one of its {layers + 1} hidden states with an index from {-layers - 1} to {layers}"
            )
        if self.num_features == 0:
            raise ValueError(
                f"vision_config.image_size {self.vision_config.image_size} is smaller than one patch of "
                f"{self.vision_config.patch_size} pixels: increase image_size"
            )

    @property
    def num_image_tokens(self) -> int:
        """Number of tokens per image in the language model's input: M plus the projector's end tokens, if any."""
        return self.projector["num_tokens"] + self.projector["settings"].get("num_end_tokens", 0)

    @property
    def num_features(self) -> int:
        """N, the number of patch features per image."""
        return (self.vision_config.image_size // self.vision_config.patch_size) ** 2

    @property
    def num_vision_layers(self) -> int:
        """Number of encoder layers that must run to obtain hidden_states[vision_layer]."""
        return self.vision_layer % (self.vision_config.num_hidden_layers + 1)


AutoConfig.register("honeybee", HoneybeeConfig)
