"""The authors' projectors in sizes and options beyond the reference files, compared with explicit formulas."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

from model.official.projectors import official_state, projector_config, projector_from_official, projector_settings
from model.projectors import Shape, build_projector

State = dict[str, Tensor]
C, D = 20, 28


# --- the authors' formulas, with their parameter names ---


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def norm(state: State, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def as_map(x: Tensor) -> Tensor:
    """(B, N, C) → (B, C, √N, √N)."""
    side = round(x.shape[1] ** 0.5)
    return x.transpose(1, 2).unflatten(2, (side, side))


def with_end(tokens: Tensor, end: Tensor | None) -> Tensor:
    return tokens if end is None else torch.cat([tokens, end.expand(len(tokens), -1, -1)], dim=1)


def readout(config: dict[str, Any], state: State, name: str, depth: int, x: Tensor) -> Tensor:
    for layer in range(depth):
        x = linear(state, f"{name}.{2 * layer}", F.silu(x) if layer else x)
    return x


def prepared(config: dict[str, Any], state: State, x: Tensor) -> Tensor:
    if config.get("prenorm"):
        x = norm(state, "prenorm", x, 1e-6)
    return x + state["pos_emb"] if config["pos_emb"] else x


def mlp(config: dict[str, Any], state: State, x: Tensor) -> Tensor:
    x = prepared(config, state, x)
    return with_end(readout(config, state, "net", config["depth"], x), state.get("eos_tokens"))


def block(state: State, name: str, x: Tensor) -> Tensor:
    def convolution(part: str, x: Tensor) -> Tensor:
        weight = state[f"{name}.{part}.conv.weight"]
        x = F.conv2d(x, weight, padding=weight.shape[-1] // 2, groups=x.shape[1] // weight.shape[1])
        return norm(state, f"{name}.{part}.bn", x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def gate(part: str, x: Tensor) -> Tensor:
        return F.conv2d(x, state[f"{name}.se.{part}.weight"], state[f"{name}.se.{part}.bias"])

    y = F.silu(convolution("conv2", F.silu(convolution("conv1", x))))
    y = y * torch.sigmoid(gate("fc2", F.silu(gate("fc1", y.mean(dim=(2, 3), keepdim=True)))))
    shortcut = convolution("downsample", x) if f"{name}.downsample.conv.weight" in state else x
    return F.silu(convolution("conv3", y) + shortcut)


def c_abstractor(config: dict[str, Any], state: State, x: Tensor) -> Tensor:
    x = as_map(prepared(config, state, x))
    for number in range(config["depth"]):
        x = block(state, f"net.0.b{number + 1}", x)
    x = F.adaptive_avg_pool2d(x, round(config["num_query_tokens"] ** 0.5))
    for number in range(config["depth"]):
        x = block(state, f"net.2.b{number + 1}", x)
    tokens = readout(config, state, "readout", config["mlp_depth"], x.flatten(2).transpose(1, 2))
    return with_end(tokens, state.get("eos_tokens"))


def resampler(config: dict[str, Any], state: State, x: Tensor) -> Tensor:
    x = linear(state, "visual_input_fc", x + state["pos_emb"] if config["pos_emb"] else x)
    queries = state["query_tokens"].expand(len(x), -1, -1)
    for layer in range(config["num_hidden_layers"]):
        at = f"encoder.layers.{layer}.crossattention"
        queries = norm(state, f"{at}.norm1", queries)
        read = torch.cat([queries, norm(state, f"{at}.normk", x)], dim=1)
        q, k, v = (
            linear(state, f"{at}.attention.{part}", of)
            for part, of in (("query", queries), ("key", read), ("value", read))
        )
        queries = queries + linear(state, f"{at}.output.out_proj", attend(q, k, v, config["num_attention_heads"]))
        inner = norm(state, f"{at}.output.norm2", queries)
        gated = F.silu(linear(state, f"{at}.output.mlp.w1", inner)) * linear(state, f"{at}.output.mlp.w3", inner)
        gated = norm(state, f"{at}.output.mlp.ffn_ln", gated, config["layer_norm_eps"])
        queries = queries + linear(state, f"{at}.output.mlp.w2", gated)
    return with_end(linear(state, "visual_output_fc", queries), state.get("vit_eos"))


def deformable(config: dict[str, Any], state: State, at: str, queries: Tensor, features: Tensor) -> Tensor:
    heads, points, side = config["decoder_attention_heads"], config["decoder_n_points"], round(features.shape[1] ** 0.5)
    value = as_map(linear(state, f"{at}.value_proj", features)).unflatten(1, (heads, -1)).flatten(0, 1)
    offsets = linear(state, f"{at}.sampling_offsets", queries).unflatten(-1, (heads, points, 2)) / side
    positions = state["reference_points"][:, :, None, None] + offsets  # (B, M, heads, points, 2), in map widths
    weights = linear(state, f"{at}.attention_weights", queries).unflatten(-1, (heads, points)).softmax(-1)
    grid = (2 * positions - 1).transpose(1, 2).flatten(0, 1)
    read = F.grid_sample(value, grid, align_corners=False)  # (B·heads, width, M, points)
    read = (read * weights.transpose(1, 2).flatten(0, 1)[:, None]).sum(-1)
    return linear(state, f"{at}.output_proj", read.unflatten(0, (-1, heads)).flatten(1, 2).transpose(1, 2))


def d_abstractor(config: dict[str, Any], state: State, x: Tensor) -> Tensor:
    if "input_proj.0.weight" in state:
        x = linear(state, "input_proj.0", x)
    if config["pos_emb"]:
        x = x + state["v_pos_emb"]
    learned = state["query_position_embeddings.weight"].expand(len(x), -1, -1)
    pooled = F.adaptive_avg_pool2d(as_map(x), round(config["num_queries"] ** 0.5)).flatten(2).transpose(1, 2)
    use = config["pooled_v_target"]
    position, h = {"query": (pooled, learned), "tgt": (learned, pooled)}.get(use) or learned.chunk(2, dim=-1)
    for layer in range(config["decoder_layers"]):
        at = f"layers.{layer}"
        q, k, v = (
            linear(state, f"{at}.self_attn.{part}_proj", of)
            for part, of in (("q", h + position), ("k", h + position), ("v", h))
        )
        own = linear(state, f"{at}.self_attn.out_proj", attend(q, k, v, config["decoder_attention_heads"]))
        h = norm(state, f"{at}.self_attn_layer_norm", h + own)
        read = deformable(config, state, f"{at}.encoder_attn", h + position, x)
        h = norm(state, f"{at}.encoder_attn_layer_norm", h + read)
        inner = linear(state, f"{at}.fc2", F.relu(linear(state, f"{at}.fc1", h)))
        h = norm(state, f"{at}.final_layer_norm", h + inner)
    h = with_end(h, state.get("eos_tokens"))
    return linear(state, "output_proj", h) if "output_proj.weight" in state else h


FORMULAS: dict[str, Callable[[dict[str, Any], State, Tensor], Tensor]] = {
    "mlp": mlp,
    "c-abs": c_abstractor,
    "resampler": resampler,
    "d-abs": d_abstractor,
}


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["linear_N64", "mlp2_N64", "c-abs_N64_M16", "resampler_N64_M16", "d-abs_N64_M16"])
def test_formulas_reproduce_the_authors_outputs(realdata: Path, name: str) -> None:
    path = realdata.parent / "reference" / "projectors" / f"{name}.safetensors"
    if not path.is_file():
        pytest.skip(f"no reference output at {path}")
    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["case"])["config"]
        state = {k.removeprefix("state."): file.get_tensor(k) for k in file.keys() if k.startswith("state.")}  # noqa: SIM118
        given, expected = file.get_tensor("input"), file.get_tensor("output")
    output = FORMULAS[config["projector_type"]](with_defaults(config), state, given)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)


# --- other sizes and options ---

C_ABS: dict[str, Any] = {"projector_type": "c-abs", "depth": 1, "mlp_depth": 2, "hidden_size": 24}
RESAMPLER: dict[str, Any] = {
    "projector_type": "resampler",
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 36,
}
D_ABS: dict[str, Any] = {
    "projector_type": "d-abs",
    "d_model": 24,
    "decoder_layers": 1,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 36,
    "decoder_n_points": 4,
    "pooled_v_target": "query",
}
MLP: dict[str, Any] = {"projector_type": "mlp", "depth": 1}

CASES: dict[str, tuple[int, int, dict[str, Any]]] = {  # N, M and the authors' configuration
    "linear": (16, 16, MLP),
    "linear with all options": (16, 16, {**MLP, "prenorm": True, "pos_emb": True, "num_eos_tokens": 2}),
    "mlp of depth 3": (9, 9, {**MLP, "depth": 3, "pos_emb": True}),
    "c-abs, M > N": (16, 36, {**C_ABS, "pos_emb": True}),
    "c-abs, M does not divide N": (25, 9, C_ABS),
    "c-abs, one token": (16, 1, C_ABS),
    "c-abs, only pooling": (16, 4, {**C_ABS, "depth": 0, "pos_emb": True}),
    "c-abs with the encoder's width": (16, 4, {**C_ABS, "hidden_size": C, "depth": 2, "mlp_depth": 1}),
    "c-abs with all options": (16, 9, {**C_ABS, "depth": 3, "prenorm": True, "pos_emb": True, "num_eos_tokens": 2}),
    "resampler, M > N": (9, 20, {**RESAMPLER, "pos_emb": True}),
    "resampler with end tokens": (16, 3, {**RESAMPLER, "num_hidden_layers": 3, "num_eos_tokens": 2}),
    "resampler with a different epsilon": (16, 3, {**RESAMPLER, "layer_norm_eps": 1e-2}),
    "d-abs, M > N": (16, 25, {**D_ABS, "pos_emb": True}),
    "d-abs with the encoder's width": (16, 4, {**D_ABS, "d_model": C, "num_eos_tokens": 2}),
    "d-abs with the output width": (16, 4, {**D_ABS, "d_model": D, "pos_emb": True, "num_eos_tokens": 2}),
    "d-abs, pooled as queries": (16, 4, {**D_ABS, "pooled_v_target": "tgt", "decoder_n_points": 2}),
    "d-abs, nothing pooled": (25, 9, {**D_ABS, "pooled_v_target": "none", "decoder_layers": 3}),
}


def with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    defaults = {"pos_emb": False, "num_eos_tokens": 0, "layer_norm_eps": 1e-6, "decoder_attention_heads": 8}
    return {**defaults, "decoder_n_points": 4, **config}


def case(name: str) -> tuple[int, dict[str, Any], State]:
    """Returns N, the complete configuration and a state dict of random weights."""
    n, m, config = CASES[name]
    config = {
        "pos_emb": False,
        "num_eos_tokens": 0,
        **({"layer_norm_eps": 1e-6} if config["projector_type"] == "resampler" else {}),
        **config,
        "encoder_hidden_size": C,
        "output_hidden_size": D,
        "num_queries" if config["projector_type"] == "d-abs" else "num_query_tokens": m,
    }
    described = projector_settings(config, n)
    torch.manual_seed(0)
    projector = build_projector(described["type"], Shape(n, described["num_tokens"], C, D), described["settings"])
    state = official_state(projector)
    return n, config, {key: tensor.detach() + torch.randn(tensor.shape) * 0.2 for key, tensor in state.items()}


@pytest.mark.parametrize("name", CASES)
def test_outputs_equal_the_formulas(name: str) -> None:
    n, config, state = case(name)
    given = torch.randn(2, n, C)
    projector = projector_from_official(config, state, n)
    with torch.no_grad():
        output = projector(given)
    assert output.shape == (2, CASES[name][1] + config["num_eos_tokens"], D) and output.std() > 0.05
    expected = FORMULAS[config["projector_type"]](config, state, given)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip_preserves_weights_and_settings(name: str, dtype: torch.dtype) -> None:
    n, config, state = case(name)
    state = {key: tensor.to(dtype) for key, tensor in state.items()}
    projector = projector_from_official(config, state, n)
    assert {parameter.dtype for parameter in projector.parameters()} == {dtype} and not projector.training
    back = official_state(projector)
    assert back.keys() == state.keys()
    assert all(back[key].dtype == dtype and torch.equal(back[key], state[key]) for key in state)
    again = projector_config(projector)
    assert {key: again[key] for key in config} == config
    assert projector_from_official(again, back, n).settings == projector.settings


@pytest.mark.parametrize("name", ["c-abs with all options", "mlp of depth 3", "resampler, M > N"])
def test_row_of_the_class_token_is_ignored(name: str) -> None:
    n, config, state = case(name)
    old = {**state, "pos_emb": torch.cat([torch.full((1, 1, C), 9.0), state["pos_emb"]], dim=1)}
    given = torch.randn(1, n, C)
    with torch.no_grad():
        with_row, without = (projector_from_official(config, s, n)(given) for s in (old, state))
    assert torch.equal(with_row, without)
    two = {**state, "pos_emb": torch.zeros(1, n + 2, C)}
    with pytest.raises(ValueError, match=rf"'pos_emb' has shape \(1, {n + 2}, {C}\), expected \(1, {n}, {C}\)"):
        projector_from_official(config, two, n)


@pytest.mark.parametrize("name", ["c-abs with all options", "d-abs, M > N", "resampler, M > N", "linear"])
def test_weights_of_other_options_are_rejected_by_name(name: str) -> None:
    n, config, state = case(name)
    with pytest.raises(ValueError, match="lacks '(eos_tokens|vit_eos)'" if not config["num_eos_tokens"] else "shape"):
        projector_from_official({**config, "num_eos_tokens": 1}, state, n)
    if config["pos_emb"]:
        with pytest.raises(ValueError, match=r"unexpected weights for a .*: \['(v_)?pos_emb'\]"):
            projector_from_official({**config, "pos_emb": False}, state, n)
    else:
        with pytest.raises(ValueError, match="lacks 'pos_emb'"):
            projector_from_official({**config, "pos_emb": True}, state, n)


def test_setting_without_counterpart_is_rejected() -> None:
    projector = build_projector("resampler", Shape(16, 4, C, D), {"hidden_size": 16, "num_heads": 2, "prenorm": True})
    with pytest.raises(ValueError, match="resampler projector has no counterpart of prenorm: True"):
        projector_config(projector)


def test_conversion_does_not_consume_random_numbers() -> None:
    n, config, state = case("c-abs with all options")
    before = torch.get_rng_state()
    projector_from_official(config, state, n)
    assert torch.equal(torch.get_rng_state(), before)
