"""What a Honeybee model is made of: a vision encoder, a projector and a language model (paper section 3.1)."""

from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec


class HoneybeeConfig(PreTrainedConfig):
    """Configuration of HoneybeeForConditionalGeneration.

    vision_config, text_config: of any CLIP-like vision encoder and any causal language model that transformers knows.
    projector: `type` (a name in model.projectors), `num_tokens` (M, the visual tokens of an image) and `settings`
    (of that type; all have defaults). vision_layer: which of the encoder's hidden_states the projector reads; the
    paper reads the second to last. image_token_id: the place of one visual token in input_ids.

    Raises ValueError where the parts cannot fit together.
    """

    model_type = "honeybee"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="clip_vision_model"),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama"),
    }

    vision_config: Any = None  # a configuration, or a dict of one with its model_type
    text_config: Any = None
    projector: Any = None
    vision_layer: int = -2
    image_token_id: int = 0

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        projector = {"type": "c-abstractor", "num_tokens": 144, "settings": {}, **(self.projector or {})}
        unknown = sorted(set(projector) - {"type", "num_tokens", "settings"})
        if unknown:
            raise ValueError(f"projector has unknown keys {unknown}: it takes type, num_tokens and settings")
        if type(projector["num_tokens"]) is not int or projector["num_tokens"] < 1:
            raise ValueError(f"num_tokens of the projector is {projector['num_tokens']!r}, and must be a number from 1")
        if not isinstance(projector["settings"], dict):
            raise ValueError(f"settings of the projector are {projector['settings']!r}, and must be an object")
        self.projector = projector
        layers = self.vision_config.num_hidden_layers
        if not -layers - 1 <= self.vision_layer <= layers:
            raise ValueError(
                f"vision_layer is {self.vision_layer}, but the vision encoder has {layers} layers: "
                f"give an index from {-layers - 1} to {layers} of its {layers + 1} hidden states"
            )
        if self.num_features == 0:
            raise ValueError(
                f"an image of {self.vision_config.image_size} pixels holds no patch of "
                f"{self.vision_config.patch_size}: raise image_size"
            )

    @property
    def num_image_tokens(self) -> int:
        """Tokens that an image takes in the language model's input: M, and the projector's end tokens if it has any."""
        return self.projector["num_tokens"] + self.projector["settings"].get("num_end_tokens", 0)

    @property
    def num_features(self) -> int:
        """N, the patch features of an image."""
        return (self.vision_config.image_size // self.vision_config.patch_size) ** 2

    @property
    def num_vision_layers(self) -> int:
        """How many layers of the vision encoder must run to get hidden_states[vision_layer]."""
        return self.vision_layer % (self.vision_config.num_hidden_layers + 1)


AutoConfig.register("honeybee", HoneybeeConfig)
