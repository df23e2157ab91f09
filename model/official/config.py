"""Converts the configuration of the authors' checkpoints to ours and back.

Source: their configuration classes. Releases of December 2023 have `visual_projector_config` and `num_query_tokens`,
later ones `projector_config`; both contain the complete configurations of the encoder and the language model.
"""

from dataclasses import fields
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, CLIPVisionConfig, LlamaConfig, PreTrainedConfig
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from model.configuration import HoneybeeConfig
from model.modeling import build_projector_from_config
from model.official.projectors import projector_config, projector_settings
from model.official.weight_files import WeightFileError

# part of their configuration: its class, required keys, command-line option, and their key for its name
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
    """Converts their configuration to ours, with their vocabulary and without an image token.

    official: their config.json. vision, llm: directories or hub names that supply the configuration of a part if
    theirs is incomplete. Raises CheckpointError, naming the key, for missing or unsupported values.
    """
    given = official.get("vision_config")
    kind = given.get("encoder_type", "openai.clip") if isinstance(given, dict) else None
    if kind not in (None, "openai.clip"):
        raise WeightFileError(f"config.json: vision_config.encoder_type is {kind!r}, but must be 'openai.clip'")
    vision_config = _part(official, "vision_config", vision)
    text_config = _part(official, "text_config", llm)
    projector = _projector(official, vision_config, text_config)
    layer = projector.get("feature_layer_index", -1)
    if not isinstance(layer, int) or isinstance(layer, bool):
        raise WeightFileError(f"config.json: feature_layer_index is {layer!r}, but must be a single layer index")
    try:
        features = (vision_config.image_size // vision_config.patch_size) ** 2
        return HoneybeeConfig(
            vision_config=vision_config,
            text_config=text_config,
            projector=projector_settings(projector, features),
            vision_layer=layer,
        )
    except (ValueError, ZeroDivisionError) as error:
        raise WeightFileError(f"config.json: {error}") from None


def projector_part(official: dict[str, Any], config: HoneybeeConfig) -> dict[str, Any]:
    """Returns the projector part of their configuration, in the form expected by `projector_from_official`."""
    return _projector(official, config.vision_config, config.text_config)


def normalisation(official: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Returns mean and standard deviation per channel, for pixel values from 0 to 1. Raises CheckpointError."""
    vision = official.get("vision_config") or {}
    values = vision.get("image_mean", OPENAI_CLIP_MEAN), vision.get("image_std", OPENAI_CLIP_STD)
    for value in values:
        if not isinstance(value, list) or len(value) != 3 or not all(type(x) in (int, float) for x in value):
            raise WeightFileError("config.json: vision_config.image_mean and image_std must each be three numbers")
    if not min(values[1]) > 0:
        raise WeightFileError(f"config.json: vision_config.image_std must be greater than 0, found {values[1]}")
    return values


def to_official(
    config: HoneybeeConfig, names: dict[str, str], mean: list[float], std: list[float], vocabulary: int
) -> dict[str, Any]:
    """Returns their config.json in its later form. names: `vision`, `llm` and `tokenizer`, from which their code loads
    these parts. vocabulary: number of embedding rows. Raises CheckpointError for parts that their code lacks."""
    for part, (cls, *_) in _PARTS.items():
        if getattr(config, part).model_type != cls.model_type:
            found = getattr(config, part).model_type
            raise WeightFileError(f"{part} is of type {found}, but the authors' code supports only {cls.model_type}")
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


def check_same_config(official: dict[str, Any], config: HoneybeeConfig) -> None:
    """Raises CheckpointError, naming the key, if their configuration differs from that of our model."""
    theirs = from_official(official)
    for part in _PARTS:
        wanted = _own(getattr(theirs, part))
        found = _own(getattr(config, part))
        for key in wanted.keys() - {"vocab_size"}:
            if wanted[key] != found.get(key):
                raise WeightFileError(
                    f"{part}.{key} is {found.get(key)!r} in the model, but {wanted[key]!r} in official/config.json"
                )
    wanted, found = _projector_config(theirs), _projector_config(config)
    if (wanted, theirs.vision_layer) != (found, config.vision_layer):
        raise WeightFileError("projector or vision_layer of the model differs from that in official/config.json")


def _projector_config(config: HoneybeeConfig) -> dict[str, Any]:
    with torch.device("meta"):
        projector = build_projector_from_config(config)
    try:
        return projector_config(projector)
    except ValueError as error:
        raise WeightFileError(str(error)) from None


def _projector(official: dict[str, Any], vision: Any, text: Any) -> dict[str, Any]:
    if "projector_config" in official:
        # default of their later code
        projector = {"num_eos_tokens": 0, **_object(official, "projector_config")}
    else:
        projector = dict(_object(official, "visual_projector_config"))
        if "num_query_tokens" in official:
            projector["num_query_tokens"] = official["num_query_tokens"]
    # their code overwrites both with the widths of the parts
    projector |= {"encoder_hidden_size": vision.hidden_size, "output_hidden_size": text.hidden_size}
    num_tokens, num_queries = projector.get("num_query_tokens"), projector.get("num_queries")
    if projector.get("projector_type") == "d-abs" and num_tokens not in (None, num_queries):
        raise WeightFileError(f"config.json: num_query_tokens is {num_tokens!r}, but num_queries is {num_queries!r}")
    return projector


def _part(official: dict[str, Any], part: str, source: str | None) -> Any:
    """Returns the configuration of an encoder or language model; `source` supplies the defaults if theirs is
    incomplete."""
    cls, needed, option, name_key = _PARTS[part]
    given = official.get(part) or {}
    if not isinstance(given, dict):
        raise WeightFileError(f"config.json: {part} must be an object")
    lacking = needed - {key for key, value in given.items() if value is not None}
    base: dict[str, Any] = {}
    if lacking:
        if source is None:
            named = (given if part == "vision_config" else official.get("lm_config") or {}).get(name_key)
            raise WeightFileError(
                f"config.json: {part} lacks {sorted(lacking)}: use --{option} to specify where to take them from"
                + (f"; its {name_key} is {named!r}" if named else "")
            )
        try:
            found = AutoConfig.from_pretrained(source, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise WeightFileError(f"--{option} {source}: {error}") from None
        base = _own(getattr(found, "vision_config", found) if part == "vision_config" else found, cls)
    model_type = given.get("model_type") or cls.model_type
    if model_type != cls.model_type:
        raise WeightFileError(f"config.json: {part}.model_type is {model_type!r}, but must be {cls.model_type!r}")
    chosen = {key: value for key, value in given.items() if key in _keys(cls) and value is not None}
    try:
        return cls(**{**base, **chosen})
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise WeightFileError(f"config.json: {part}: {error}") from None


def _keys(cls: type[PreTrainedConfig]) -> set[str]:
    """Returns the keys of a configuration class that describe the model itself, including the two legacy keys of
    rope_parameters."""
    general = {field.name for field in fields(PreTrainedConfig)}
    return {field.name for field in fields(cls)} - general | {"rope_theta", "rope_scaling"}


def _own(config: Any, cls: type[PreTrainedConfig] | None = None) -> dict[str, Any]:
    if cls is not None and config.model_type != cls.model_type:
        raise WeightFileError(f"{config.name_or_path} is of type {config.model_type}, but must be {cls.model_type}")
    return {key: value for key, value in config.to_dict().items() if key in _keys(type(config))}


def _object(official: dict[str, Any], key: str) -> dict[str, Any]:
    value = official.get(key)
    if not isinstance(value, dict):
        raise WeightFileError(f"config.json has no object {key}: this is not a checkpoint of the authors' code")
    return value
