"""Small checkpoints in the format of the authors' code: key names, configuration and all file formats."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from model.official.projectors import official_state, projector_settings
from model.projectors import Shape, build_projector

VOCABULARY = 320
N = 16  # features per image
CLIP = CLIPVisionConfig(
    hidden_size=20,
    intermediate_size=40,
    num_attention_heads=2,
    num_hidden_layers=3,
    image_size=32,
    patch_size=8,
)
LLAMA = LlamaConfig(
    hidden_size=24,
    intermediate_size=48,
    num_attention_heads=4,
    num_key_value_heads=2,
    num_hidden_layers=2,
    vocab_size=VOCABULARY,
    max_position_embeddings=256,
    rms_norm_eps=1e-5,
    bos_token_id=1,
    eos_token_id=2,
)

# the projector part of config.json, with their keys
PROJECTORS: dict[str, dict[str, Any]] = {
    "c-abs": {
        "projector_type": "c-abs",
        "depth": 1,
        "mlp_depth": 2,
        "hidden_size": 28,
        "num_eos_tokens": 0,
        "pos_emb": True,
        "feature_layer_index": -1,
        "prenorm": False,
        "num_query_tokens": 9,
    },
    "d-abs": {
        "projector_type": "d-abs",
        "d_model": 28,
        "decoder_layers": 2,
        "decoder_attention_heads": 4,
        "decoder_ffn_dim": 32,
        "decoder_n_points": 4,
        "num_eos_tokens": 1,
        "num_feature_levels": 1,
        "feature_layer_index": -1,
        "pos_emb": True,
        "manual_init_refPoints": True,
        "learnable_mRP": True,
        "pooled_v_target": "query",
        "num_queries": 4,
        "num_query_tokens": 4,
    },
    "mlp": {
        "projector_type": "mlp",
        "depth": 2,
        "num_eos_tokens": 0,
        "pos_emb": True,
        "feature_layer_index": -2,
        "num_query_tokens": N,
    },
    "linear": {
        "projector_type": "mlp",
        "depth": 1,
        "num_eos_tokens": 0,
        "pos_emb": False,
        "feature_layer_index": -2,
        "num_query_tokens": N,
    },
    "resampler": {
        "projector_type": "resampler",
        "hidden_size": 28,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 32,
        "num_eos_tokens": 2,
        "pos_emb": True,
        "feature_layer_index": -1,
        "num_query_tokens": 5,
    },
}


def parts(name: str, dtype: torch.dtype = torch.float32) -> tuple[CLIPVisionModel, LlamaForCausalLM, dict[str, Tensor]]:
    """Returns encoder, language model and the projector's state dict, with weights from a fixed seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        clip, llama = CLIPVisionModel(CLIP).to(dtype).eval(), LlamaForCausalLM(LLAMA).to(dtype).eval()
        config = part(name)
        described = projector_settings(config, N)
        shape = Shape(N, described["num_tokens"], CLIP.hidden_size, LLAMA.hidden_size)
        projector = build_projector(described["type"], shape, described["settings"])
        for parameter in projector.parameters():  # move them away from zeros and ones
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return clip, llama, official_state(projector)


def part(name: str) -> dict[str, Any]:
    """Returns the projector part of the configuration, with the widths of the encoder and the language model."""
    return {**PROJECTORS[name], "encoder_hidden_size": CLIP.hidden_size, "output_hidden_size": LLAMA.hidden_size}


def state_of(name: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Returns the state dict of the complete checkpoint; a D-Abstractor is always fp32."""
    clip, llama, projector = parts(name, dtype)
    kind = torch.float32 if name == "d-abs" else dtype
    return {
        **{f"vision_model.vision_model.{key}": tensor for key, tensor in clip.state_dict().items()},
        **{f"abstractor.{key}": tensor.to(kind).detach() for key, tensor in projector.items()},
        **{f"language_model.{key}": tensor for key, tensor in llama.state_dict().items()},
    }


def config_of(name: str, early: bool = False) -> dict[str, Any]:
    """Returns the content of config.json; early: in the format of the first releases."""
    vision = {**CLIP.to_dict(), "encoder_type": "openai.clip", "pretrained_vision_name_or_path": "openai/clip"}
    text = {**LLAMA.to_dict(), "rope_theta": 10000.0, "rope_scaling": None, "torch_dtype": "float16"}
    del text["rope_parameters"]
    common = {
        "architectures": ["HoneybeeForConditionalGeneration"],
        "lm_config": {"pretrained_lm_name_or_path": "lmsys/vicuna", "pretrained_tokenizer_name_or_path": "./llama2"},
        "text_config": text,
        "torch_dtype": "bfloat16",
    }
    if early:
        projector = {**PROJECTORS[name], "encoder_hidden_size": CLIP.hidden_size, "use_cls": True}
        tokens = projector.pop("num_query_tokens")
        vision["model_type"] = "clip_vision_model"
        return common | {
            "model_type": "mllm",
            "hidden_size": LLAMA.hidden_size,
            "vision_config": vision,
            "visual_projector_config": projector,
            "num_query_tokens": tokens,
        }
    vision |= {"model_type": "", "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.3]}
    return common | {"vision_config": vision, "projector_config": part(name)}


def write(
    directory: Path, config: dict[str, Any], state: dict[str, Tensor], form: str = "torch", shards: int = 1
) -> Path:
    """Writes a checkpoint directory. form: `torch` or `safetensors`. shards: number of files; an index if above 1."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    stem, end = ("pytorch_model", "bin") if form == "torch" else ("model", "safetensors")
    keys = list(state)
    index = {}
    for number in range(shards):
        name = f"{stem}.{end}" if shards == 1 else f"{stem}-{number + 1:05}-of-{shards:05}.{end}"
        held = {key: state[key].clone() for key in keys[number::shards]}
        index |= dict.fromkeys(held, name)
        if form == "torch":
            torch.save(held, directory / name)
        else:
            save_file(held, directory / name, {"format": "pt"})
    if shards > 1:
        text = json.dumps({"metadata": {}, "weight_map": index})
        (directory / f"{stem}.{end}.index.json").write_text(text)
    return directory
