"""Converts the authors' projectors to ours and back: configuration keys and parameter names, with equal outputs.

`FORMATS` describes the supported types; source: the configurations and state dicts of the released checkpoints.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from model.projectors import Projector, Shape, build_projector

REQUIRED = object()


@dataclass(frozen=True)
class Format:
    """One of the authors' projector types.

    type: our name of the type. settings: our setting → their key, and their default for an absent key. name: maps our
    parameter names to theirs. tokens: their key for M; None if M equals N. fixed: their keys for which only one value
    is supported. values: our setting → their value → our value, where the values differ.
    """

    type: str
    settings: dict[str, tuple[str, Any]]
    name: Callable[[str], str]
    tokens: str | None = "num_query_tokens"
    fixed: dict[str, Any] = field(default_factory=dict)
    values: dict[str, dict[str, str]] = field(default_factory=dict)


def _replace(name: str, pairs: dict[str, str]) -> str:
    for ours, theirs in pairs.items():
        name = name.replace(ours, theirs)
    return name


def _mlp_name(name: str) -> str:
    return _replace(name, {"position_embedding": "pos_emb", "end_tokens": "eos_tokens"})


def _c_abstractor_name(name: str) -> str:
    name = re.sub(r"^blocks_before\.(\d+)", lambda block: f"net.0.b{int(block[1]) + 1}", name)
    name = re.sub(r"^blocks_after\.(\d+)", lambda block: f"net.2.b{int(block[1]) + 1}", name)
    parts = {
        ".reduce.": ".conv1.conv.",
        ".reduce_norm.": ".conv1.bn.",
        ".spatial.": ".conv2.conv.",
        ".spatial_norm.": ".conv2.bn.",
        ".squeeze.": ".se.fc1.",
        ".excite.": ".se.fc2.",
        ".expand.": ".conv3.conv.",
        ".expand_norm.": ".conv3.bn.",
        ".shortcut.0.": ".downsample.conv.",
        ".shortcut.1.": ".downsample.bn.",
    }
    return _mlp_name(_replace(name, parts))


def _resampler_name(name: str) -> str:
    name = re.sub(r"^(input|output)\.", r"visual_\1_fc.", name)
    name = re.sub(r"^layers\.(\d+)\.", r"encoder.layers.\1.crossattention.", name)
    parts = {
        ".query_norm.": ".norm1.",
        ".feature_norm.": ".normk.",
        ".query.": ".attention.query.",
        ".key.": ".attention.key.",
        ".value.": ".attention.value.",
        ".output.": ".output.out_proj.",
        ".mlp_norm.": ".output.norm2.",
        ".gate.": ".output.mlp.w1.",
        ".down.": ".output.mlp.w2.",
        ".up.": ".output.mlp.w3.",
        ".inner_norm.": ".output.mlp.ffn_ln.",
        "queries": "query_tokens",
        "end_tokens": "vit_eos",
    }
    return _mlp_name(_replace(name, parts))


def _d_abstractor_name(name: str) -> str:
    name = re.sub(r"^input\.", "input_proj.0.", name)
    name = re.sub(r"^output\.", "output_proj.", name)
    parts = {
        ".deformable.offsets.": ".encoder_attn.sampling_offsets.",
        ".deformable.weights.": ".encoder_attn.attention_weights.",
        ".deformable.value.": ".encoder_attn.value_proj.",
        ".deformable.output.": ".encoder_attn.output_proj.",
        ".deformable_norm.": ".encoder_attn_layer_norm.",
        ".query.": ".self_attn.q_proj.",
        ".key.": ".self_attn.k_proj.",
        ".value.": ".self_attn.v_proj.",
        ".output.": ".self_attn.out_proj.",
        ".self_norm.": ".self_attn_layer_norm.",
        ".up.": ".fc1.",
        ".down.": ".fc2.",
        ".mlp_norm.": ".final_layer_norm.",
    }
    exact = {"position_embedding": "v_pos_emb", "queries": "query_position_embeddings.weight"}
    return exact.get(name) or _mlp_name(_replace(name, parts))


_COMMON: dict[str, tuple[str, Any]] = {
    "position_embedding": ("pos_emb", False),
    "num_end_tokens": ("num_eos_tokens", 1),
    "initializer_range": ("initializer_range", 0.02),
}
_PRENORM = {"prenorm": ("prenorm", False)}

FORMATS = {
    "mlp": Format("mlp", {**_COMMON, **_PRENORM, "depth": ("depth", REQUIRED)}, _mlp_name, tokens=None),
    "c-abs": Format(
        "c-abstractor",
        {
            **_COMMON,
            **_PRENORM,
            "hidden_size": ("hidden_size", 1024),
            "depth": ("depth", REQUIRED),
            "mlp_depth": ("mlp_depth", REQUIRED),
        },
        _c_abstractor_name,
    ),
    "resampler": Format(
        "resampler",
        {
            **_COMMON,
            "hidden_size": ("hidden_size", 1024),
            "num_layers": ("num_hidden_layers", 6),
            "num_heads": ("num_attention_heads", 16),
            "intermediate_size": ("intermediate_size", 4096),
            "layer_norm_eps": ("layer_norm_eps", 1e-6),
            "dropout": ("attention_probs_dropout_prob", 0.1),
        },
        _resampler_name,
    ),
    "d-abs": Format(
        "d-abstractor",
        {
            "position_embedding": ("pos_emb", REQUIRED),
            "num_end_tokens": ("num_eos_tokens", REQUIRED),
            "initializer_range": ("initializer_range", 0.02),
            "hidden_size": ("d_model", 256),
            "num_layers": ("decoder_layers", 6),
            "num_heads": ("decoder_attention_heads", 8),
            "intermediate_size": ("decoder_ffn_dim", 1024),
            "num_points": ("decoder_n_points", 4),
            "pooled_map": ("pooled_v_target", REQUIRED),
            "dropout": ("dropout", 0.1),
        },
        _d_abstractor_name,
        tokens="num_queries",
        fixed={
            "num_feature_levels": 1,
            "activation_function": "relu",
            "manual_init_refPoints": True,
            "learnable_mRP": True,
        },
        values={"pooled_map": {"query": "position", "tgt": "query", "none": "off"}},
    ),
}


def projector_settings(config: dict[str, Any], num_input_tokens: int) -> dict[str, Any]:
    """Converts the projector part of their configuration to `projector` of HoneybeeConfig. num_input_tokens: N.

    Raises ValueError, naming the key, for an unknown type, a missing key and a value that has no counterpart.
    """
    type = config.get("projector_type")
    if type not in FORMATS:
        raise ValueError(f"unknown projector_type {type!r}: the supported types are {', '.join(FORMATS)}")
    format = FORMATS[type]
    needed = {"encoder_hidden_size", "output_hidden_size"} | ({format.tokens} if format.tokens else set())
    needed |= {theirs for theirs, default in format.settings.values() if default is REQUIRED}
    if needed - set(config):
        raise ValueError(f"the configuration of the {type} projector lacks {sorted(needed - set(config))}")
    for key, only in format.fixed.items():
        if config.get(key, only) != only:
            raise ValueError(f"{key} is {config[key]!r} in the configuration, but only {only!r} is supported")
    settings = {ours: config.get(theirs, default) for ours, (theirs, default) in format.settings.items()}
    for ours, meaning in format.values.items():
        if settings[ours] not in meaning:
            raise ValueError(f"{format.settings[ours][0]} is {settings[ours]!r}, but must be one of {list(meaning)}")
        settings[ours] = meaning[settings[ours]]
    num_tokens = config[format.tokens] if format.tokens else num_input_tokens
    return {"type": format.type, "num_tokens": num_tokens, "settings": settings}


def projector_config(projector: Projector) -> dict[str, Any]:
    """Returns the projector part of their configuration; the inverse of projector_settings.

    Raises ValueError for a setting that their code does not support.
    """
    theirs, format = _format_of(projector)
    settings = projector.settings.model_dump() | ({"depth": 1} if projector.name == "linear" else {})
    config = {
        "projector_type": theirs,
        "encoder_hidden_size": projector.shape.encoder_width,
        "output_hidden_size": projector.shape.output_width,
        "num_query_tokens": projector.shape.num_tokens,
        **format.fixed,
    }
    if format.tokens:
        config[format.tokens] = projector.shape.num_tokens
    for ours, value in settings.items():
        if ours in format.settings:
            meaning = {mine: other for other, mine in format.values.get(ours, {}).items()}
            config[format.settings[ours][0]] = meaning.get(value, value)
        elif value != projector.settings_type.model_fields[ours].default:
            raise ValueError(f"the authors' {theirs} projector has no counterpart of {ours}: {value!r}")
    return config


def _format_of(projector: Projector) -> tuple[str, Format]:
    """Returns their name for the projector's type, and its format."""
    type = "mlp" if projector.name == "linear" else projector.name  # their linear projector is an MLP of depth 1
    ((theirs, format),) = ((theirs, format) for theirs, format in FORMATS.items() if format.type == type)
    return theirs, format


def projector_from_official(config: dict[str, Any], state: dict[str, Tensor], num_input_tokens: int) -> Projector:
    """Converts their projector to ours, in evaluation mode and in the precision of its weights.

    config: the projector part of their configuration. state: its state dict, with the names of their module (released
    checkpoints prefix them with `abstractor.`). num_input_tokens: N, without the class token.

    Raises ValueError, naming the key, for an unknown type, a missing configuration key, and weights that are missing,
    unexpected or of the wrong shape.
    """
    described = projector_settings(config, num_input_tokens)
    format = FORMATS[config["projector_type"]]
    shape = Shape(
        num_features=num_input_tokens,
        num_tokens=described["num_tokens"],
        encoder_width=config["encoder_hidden_size"],
        output_width=config["output_hidden_size"],
    )
    with torch.device("meta"):  # the state dict provides all values
        projector = build_projector(described["type"], shape, described["settings"])
    state = dict(state)
    own = projector.state_dict()
    for ours, wanted in own.items():
        theirs = format.name(ours)
        if theirs not in state:
            raise ValueError(f"the state dict lacks {theirs!r} (ours: {ours})")
        tensor = state.pop(theirs)
        if ours == "position_embedding" and tensor.shape[1] == wanted.shape[1] + 1:
            tensor = tensor[:, 1:]  # old checkpoints also have a row for the class token
        if tensor.ndim == 4 and wanted.ndim == 2 and tensor.shape[2:] == (1, 1):
            tensor = tensor[:, :, 0, 0]  # a 1×1 convolution is a linear layer
        if tensor.shape != wanted.shape:
            raise ValueError(f"{theirs!r} has shape {tuple(tensor.shape)}, expected {tuple(wanted.shape)}")
        own[ours] = tensor
    if state:
        raise ValueError(f"the state dict has unexpected weights for a {config['projector_type']}: {sorted(state)}")
    projector.load_state_dict(own, assign=True)
    return projector.eval()


def official_state(projector: Projector) -> dict[str, Tensor]:
    """Returns the state dict with their names and shapes; the inverse of projector_from_official."""
    _, format = _format_of(projector)
    state = {format.name(ours): tensor for ours, tensor in projector.state_dict().items()}
    # their 1×1 convolutions have four-dimensional weights; ours are linear layers
    of_convolution = re.compile(r"\.(conv|se\.fc1|se\.fc2)\.weight$")
    return {
        theirs: tensor[:, :, None, None] if of_convolution.search(theirs) and tensor.ndim == 2 else tensor
        for theirs, tensor in state.items()
    }
