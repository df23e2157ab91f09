"""The configuration of the authors' checkpoints → ours, and back.

Source: their configuration classes. Releases of December 2023 have `visual_projector_config` and `num_query_tokens`,
later ones `projector_config`; both hold the whole configurations of the encoder and of the language model.
"""

from dataclasses import fields
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, CLIPVisionConfig, LlamaConfig, PreTrainedConfig
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from model.configuration import HoneybeeConfig
from model.modeling import projector_of
from model.official import projector_config, projector_settings
from model.weight_files import CheckpointError

# part of their configuration: class, keys without which it is not whole, option, and their key for its name
_SIZES = {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"}
_PARTS: dict[str, tuple[type[PreTrainedConfig], set[str], str, str]] = {
    "vision_config": (
        CLIPVisionConfig,
        _SIZES | {"image_size", "patch_size", "hidden_act", "layer_norm_eps"},
        "vision",
        "pretrained_vision_name_or_path",
    ),
    "text_config": (LlamaConfig, _SIZES | {"vocab_size", "rms_norm_eps"}, "llm", "pretrained_lm_name_or_path"),
}


def from_official(official: dict[str, Any], vision: str | None = None, llm: str | None = None) -> HoneybeeConfig:
    """Our configuration, with their vocabulary and without an image token.

    official: their config.json. vision, llm: directories or hub names whose configuration is taken where theirs has
    no whole one of that part. Raises CheckpointError, naming the key, for what is missing or not supported.
    """
    given = official.get("vision_config")
    kind = given.get("encoder_type", "openai.clip") if isinstance(given, dict) else None
    if kind not in (None, "openai.clip"):
        raise CheckpointError(f"config.json: vision_config.encoder_type is {kind!r}: only 'openai.clip' is supported")
    vision_config = _part(official, "vision_config", vision)
    text_config = _part(official, "text_config", llm)
    projector = _projector(official, vision_config, text_config)
    layer = projector.get("feature_layer_index", -1)
    if not isinstance(layer, int) or isinstance(layer, bool):
        raise CheckpointError(f"config.json: feature_layer_index is {layer!r}: only one layer is supported")
    try:
        features = (vision_config.image_size // vision_config.patch_size) ** 2
        return HoneybeeConfig(
            vision_config=vision_config,
            text_config=text_config,
            projector=projector_settings(projector, features),
            vision_layer=layer,
        )
    except (ValueError, ZeroDivisionError) as error:
        raise CheckpointError(f"config.json: {error}") from None


def projector_part(official: dict[str, Any], config: HoneybeeConfig) -> dict[str, Any]:
    """The projector's part of their configuration, as `projector_from_official` takes it."""
    return _projector(official, config.vision_config, config.text_config)


def normalisation(official: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of the pixels, three each, of values from 0 to 1. Raises CheckpointError."""
    vision = official.get("vision_config") or {}
    values = vision.get("image_mean", OPENAI_CLIP_MEAN), vision.get("image_std", OPENAI_CLIP_STD)
    for value in values:
        if not isinstance(value, list) or len(value) != 3 or not all(type(x) in (int, float) for x in value):
            raise CheckpointError("config.json: vision_config.image_mean and image_std must be three numbers each")
    if not min(values[1]) > 0:
        raise CheckpointError(f"config.json: vision_config.image_std is {values[1]}: it must be above 0")
    return values


def to_official(
    config: HoneybeeConfig, names: dict[str, str], mean: list[float], std: list[float], vocabulary: int
) -> dict[str, Any]:
    """Their config.json, in its later form. names: `vision`, `llm`, `tokenizer`, under which their code finds these
    parts. vocabulary: rows of the table of embeddings. Raises CheckpointError for parts that they do not have."""
    for part, (cls, *_) in _PARTS.items():
        if getattr(config, part).model_type != cls.model_type:
            found = getattr(config, part).model_type
            raise CheckpointError(f"{part} is a {found}: the authors' code has only {cls.model_type}")
    vision = _own(config.vision_config)
    vision |= {"encoder_type": "openai.clip", "pretrained_vision_name_or_path": names["vision"]}
    text = {"model_type": "llama", **_own(config.text_config), "vocab_size": vocabulary}
    projector = _projector_config(config)
    return {
        "architectures": ["HoneybeeForConditionalGeneration"],
        "lm_config": {
            "pretrained_lm_name_or_path": names["llm"],
            "pretrained_tokenizer_name_or_path": names["tokenizer"],
        },
        "projector_config": {**projector, "feature_layer_index": config.vision_layer},
        "text_config": text,
        "torch_dtype": str(config.dtype).removeprefix("torch."),
        "vision_config": {**vision, "image_mean": list(mean), "image_std": list(std)},
    }


def refuse_other(official: dict[str, Any], config: HoneybeeConfig) -> None:
    """Raises CheckpointError, naming the key, where their configuration is not that of this model."""
    theirs = from_official(official)
    for part in _PARTS:
        wanted = _own(getattr(theirs, part))
        found = _own(getattr(config, part))
        for key in wanted.keys() - {"vocab_size"}:
            if wanted[key] != found.get(key):
                raise CheckpointError(
                    f"{part}.{key} is {found.get(key)!r} in the model, {wanted[key]!r} in official/config.json"
                )
    wanted, found = _projector_config(theirs), _projector_config(config)
    if (wanted, theirs.vision_layer) != (found, config.vision_layer):
        raise CheckpointError("projector or vision_layer of the model is not that of official/config.json")


def _projector_config(config: HoneybeeConfig) -> dict[str, Any]:
    with torch.device("meta"):
        projector = projector_of(config)
    try:
        return projector_config(projector)
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def _projector(official: dict[str, Any], vision: Any, text: Any) -> dict[str, Any]:
    if "projector_config" in official:
        # what their later code takes where the key is absent
        projector = {"num_eos_tokens": 0, **_object(official, "projector_config")}
    else:
        projector = dict(_object(official, "visual_projector_config"))
        if "num_query_tokens" in official:
            projector["num_query_tokens"] = official["num_query_tokens"]
    # their code overwrites both by the widths of the parts
    projector |= {"encoder_hidden_size": vision.hidden_size, "output_hidden_size": text.hidden_size}
    asked, built = projector.get("num_query_tokens"), projector.get("num_queries")
    if projector.get("projector_type") == "d-abs" and asked not in (None, built):
        raise CheckpointError(f"config.json: num_query_tokens is {asked!r}, but num_queries is {built!r}")
    return projector


def _part(official: dict[str, Any], part: str, source: str | None) -> Any:
    """The configuration of an encoder or language model: theirs, over that of `source` where theirs is not whole."""
    cls, needed, option, name_key = _PARTS[part]
    given = official.get(part) or {}
    if not isinstance(given, dict):
        raise CheckpointError(f"config.json: {part} must be an object")
    lacking = needed - {key for key, value in given.items() if value is not None}
    base: dict[str, Any] = {}
    if lacking:
        if source is None:
            named = (given if part == "vision_config" else official.get("lm_config") or {}).get(name_key)
            raise CheckpointError(
                f"config.json: {part} lacks {sorted(lacking)}: say with --{option} from where to take it"
                + (f"; its {name_key} is {named!r}" if named else "")
            )
        try:
            found = AutoConfig.from_pretrained(source, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"--{option} {source}: {error}") from None
        base = _own(getattr(found, "vision_config", found) if part == "vision_config" else found, cls)
    model_type = given.get("model_type") or cls.model_type
    if model_type != cls.model_type:
        raise CheckpointError(f"config.json: {part}.model_type is {model_type!r}: only {cls.model_type} is supported")
    chosen = {key: value for key, value in given.items() if key in _keys(cls) and value is not None}
    try:
        return cls(**{**base, **chosen})
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise CheckpointError(f"config.json: {part}: {error}") from None


def _keys(cls: type[PreTrainedConfig]) -> set[str]:
    """What a configuration class says of the model itself; older files split rope_parameters in two."""
    general = {field.name for field in fields(PreTrainedConfig)}
    return {field.name for field in fields(cls)} - general | {"rope_theta", "rope_scaling"}


def _own(config: Any, cls: type[PreTrainedConfig] | None = None) -> dict[str, Any]:
    if cls is not None and config.model_type != cls.model_type:
        raise CheckpointError(f"{config.name_or_path} is a {config.model_type}, expected a {cls.model_type}")
    return {key: value for key, value in config.to_dict().items() if key in _keys(type(config))}


def _object(official: dict[str, Any], key: str) -> dict[str, Any]:
    value = official.get(key)
    if not isinstance(value, dict):
        raise CheckpointError(f"config.json has no {key}: it is no checkpoint of the authors' code")
    return value
