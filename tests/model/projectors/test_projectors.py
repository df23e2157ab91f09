"""The projectors: equality with the authors' outputs, rejected inputs, gradients and initialisation."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

from model.official.projectors import FORMATS, official_state, projector_from_official
from model.projectors import PROJECTORS, Projector, Shape, build_projector
from model.projectors.d_abstractor import DAbstractorSettings, DeformableAttention

SMALL: dict[str, dict[str, Any]] = {
    "linear": {},
    "mlp": {},
    "c-abstractor": {"hidden_size": 24, "depth": 1},
    "resampler": {"hidden_size": 24, "num_layers": 2, "num_heads": 4, "intermediate_size": 32, "dropout": 0.0},
    "d-abstractor": {"hidden_size": 24, "num_layers": 2, "num_heads": 4, "intermediate_size": 32, "dropout": 0.0},
}


def small(name: str, num_tokens: int = 16, **settings: Any) -> Projector:
    torch.manual_seed(0)
    return build_projector(name, Shape(16, num_tokens, 20, 28), {**SMALL[name], **settings})


def features(batch: int = 2) -> Tensor:
    return torch.randn(batch, 16, 20, generator=torch.Generator().manual_seed(1))


# --- the authors' outputs ---


def reference(realdata: Path, name: str) -> tuple[dict[str, Any], int, dict[str, Tensor], Tensor, Tensor]:
    path = realdata.parent / "reference" / "projectors" / f"{name}.safetensors"
    if not path.is_file():
        pytest.skip(f"no reference output at {path}")
    with safe_open(path, "pt") as file:
        case = json.loads(file.metadata()["case"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    state = {key.removeprefix("state."): tensor for key, tensor in tensors.items() if key.startswith("state.")}
    return case["config"], case["N"], state, tensors["input"], tensors["output"]


CASES = ["linear_N64", "mlp2_N64", "c-abs_N64_M16", "resampler_N64_M16", "d-abs_N64_M16"]


@pytest.mark.realdata
@pytest.mark.parametrize("name", CASES)
def test_outputs_equal_the_authors(realdata: Path, name: str) -> None:
    config, num_input_tokens, state, given, expected = reference(realdata, name)
    projector = projector_from_official(config, state, num_input_tokens)
    with torch.no_grad():
        torch.testing.assert_close(projector(given), expected, rtol=0, atol=1e-5)
    back = official_state(projector)
    assert back.keys() == state.keys() and all(torch.equal(back[key], state[key]) for key in state)


@pytest.mark.realdata
def test_mismatched_official_weights_are_rejected_by_name(realdata: Path) -> None:
    config, n, state, *_ = reference(realdata, "c-abs_N64_M16")
    key = "net.2.b1.se.fc1.bias"
    with pytest.raises(ValueError, match=f"lacks '{key}'"):
        projector_from_official(config, {k: v for k, v in state.items() if k != key}, n)
    with pytest.raises(ValueError, match=r"unexpected weights for a c-abs: \['extra'\]"):
        projector_from_official(config, {**state, "extra": torch.zeros(1)}, n)
    with pytest.raises(ValueError, match=rf"'{key}' has shape \(3,\), expected \(16,\)"):
        projector_from_official(config, {**state, key: torch.zeros(3)}, n)
    with pytest.raises(ValueError, match=r"lacks .*depth"):
        projector_from_official({k: v for k, v in config.items() if k != "depth"}, state, n)
    with pytest.raises(ValueError, match="unknown projector_type 'q-former'"):
        projector_from_official({**config, "projector_type": "q-former"}, state, n)


@pytest.mark.realdata
def test_position_embedding_of_the_class_token_is_dropped(realdata: Path) -> None:
    config, n, state, given, expected = reference(realdata, "c-abs_N64_M16")
    old = {**state, "pos_emb": torch.cat([torch.full((1, 1, 32), 9.0), state["pos_emb"]], dim=1)}
    with torch.no_grad():
        torch.testing.assert_close(projector_from_official(config, old, n)(given), expected, rtol=0, atol=1e-5)


@pytest.mark.realdata
def test_official_options_without_counterpart_are_rejected(realdata: Path) -> None:
    config, n, state, *_ = reference(realdata, "d-abs_N64_M16")
    with pytest.raises(ValueError, match=r"num_feature_levels is 4 .* but only 1 is supported"):
        projector_from_official({**config, "num_feature_levels": 4}, state, n)
    with pytest.raises(ValueError, match="pooled_v_target is 'both', but must be one of"):
        projector_from_official({**config, "pooled_v_target": "both"}, state, n)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("options", [{}, {"num_end_tokens": 3, "position_embedding": True}], ids=["plain", "all"])
def test_conversion_to_official_names_and_back(name: str, options: dict[str, Any]) -> None:
    projector = small(name, **options).eval()
    official_types = {"linear": "mlp", **{format.type: theirs for theirs, format in FORMATS.items()}}
    format = FORMATS[official_types[name]]
    settings = projector.settings.model_dump() | ({"depth": 1} if name == "linear" else {})
    config = {"projector_type": official_types[name], "encoder_hidden_size": 20, "output_hidden_size": 28}
    for ours, (theirs, _) in format.settings.items():
        meanings = {mine: other for other, mine in format.values.get(ours, {}).items()}
        config[theirs] = meanings.get(settings[ours], settings[ours])
    if format.tokens:
        config[format.tokens] = 16
    state = official_state(projector)
    assert not any(key.startswith("blocks") for key in state)
    again = projector_from_official(config, state, 16)
    with torch.no_grad():
        assert torch.equal(again(features()), projector(features()))


# --- shapes and rejected inputs ---


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("end", [0, 2])
def test_shapes(name: str, end: int) -> None:
    projector = small(name, num_end_tokens=end, prenorm=True, position_embedding=True)
    assert projector(features(3)).shape == (3, 16 + end, 28)
    with pytest.raises(ValueError, match=r"built for 16 features of width 20 per image, but got \(9, 20\)"):
        projector(torch.zeros(1, 9, 20))


@pytest.mark.parametrize(
    "name, num_tokens",
    [("c-abstractor", 4), ("c-abstractor", 9), ("c-abstractor", 64), ("d-abstractor", 64), ("resampler", 7)],
)
def test_fewer_and_more_tokens_than_features(name: str, num_tokens: int) -> None:
    assert small(name, num_tokens)(features()).shape == (2, num_tokens, 28)


@pytest.mark.parametrize(
    "name, num_tokens, num_features, message",
    [
        ("linear", 9, 16, "num_tokens must be 16, the number of features per image, not 9"),
        ("mlp", 25, 16, "num_tokens must be 16"),
        (
            "c-abstractor",
            10,
            16,
            "c-abstractor is 10, but must be a square number, such as 9 or 16",
        ),
        ("d-abstractor", 3, 16, "num_tokens of the d-abstractor is 3"),
        ("c-abstractor", 9, 15, "features per image is 15, but must be a square number"),
    ],
)
def test_unsupported_counts_are_rejected(name: str, num_tokens: int, num_features: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_projector(name, Shape(num_features, num_tokens, 20, 28), SMALL[name])


@pytest.mark.parametrize(
    "name, settings, message",
    [
        ("c-abstractor", {"hidden": 3}, "hidden: .* the known settings are .*hidden_size, depth, mlp_depth"),
        ("c-abstractor", {"depth": "3"}, "depth: .* integer"),
        ("c-abstractor", {"hidden_size": 0}, "hidden_size: .* greater than 0"),
        ("linear", {"depth": 2}, "depth: .* the known settings are position_embedding"),
        ("resampler", {"num_heads": 5}, "multiple of num_heads, 5"),
        ("q-former", {}, "unknown projector type 'q-former': the known types are c-abstractor, d-abstractor, linear"),
    ],
)
def test_invalid_settings_are_rejected(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_projector(name, Shape(16, 16, 20, 28), {**SMALL.get(name, {}), **settings})


def test_every_type_is_tested() -> None:
    assert set(SMALL) == set(PROJECTORS)


# --- outputs, gradients and initialisation ---


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_is_initialised_and_receives_gradients(name: str) -> None:
    projector = small(name, prenorm=True, position_embedding=True, num_end_tokens=1)
    assert all(torch.isfinite(p).all() for p in projector.parameters())
    assert all(p.abs().max() < 0.2 for n, p in projector.named_parameters() if p.ndim > 1 and "reference" not in n)
    with torch.no_grad():  # move them away from zeros, where gradients vanish
        for parameter in projector.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    (projector(features()) * torch.randn(2, 17, 28)).sum().backward()
    for parameter_name, parameter in projector.named_parameters():
        # the key bias shifts all attention logits of a query equally, so that its gradient is zero
        if not parameter_name.endswith("key.bias"):
            assert parameter.grad is not None and parameter.grad.abs().max() > 1e-7, parameter_name


@pytest.mark.parametrize("name", SMALL)
def test_gradients_equal_finite_differences(name: str) -> None:
    projector = small(name, num_tokens=16).double().eval()
    given = features(1).double().requires_grad_()
    weight = torch.randn(1, 16, 28, dtype=torch.double)
    if name == "d-abstractor":  # sampling positions are computed in fp32: too coarse for finite differences
        (projector(given) * weight).sum().backward()
        assert given.grad is not None and torch.isfinite(given.grad).all()
        return
    assert torch.autograd.gradcheck(lambda x: (projector(x) * weight).sum(), given, fast_mode=True)


@pytest.mark.parametrize("name", SMALL)
def test_bf16_is_close_to_fp32(name: str) -> None:
    projector = small(name, num_tokens=16).eval()
    with torch.no_grad():
        full = projector(features())
        half = projector.to(torch.bfloat16)(features().to(torch.bfloat16))
    assert half.dtype == torch.bfloat16
    assert (half.float() - full).norm() < 0.05 * full.norm()


def test_the_c_abstractor_is_local_and_the_resampler_is_not() -> None:
    """With locality, a change in one corner of the image affects the nearest token most (paper section 3.2)."""
    changed = features(1)
    changed[:, 0] += 1
    for name, is_local in (("c-abstractor", True), ("resampler", False)):
        projector = small(name, num_tokens=4).eval()
        with torch.no_grad():
            moved = (projector(changed) - projector(features(1))).norm(dim=-1)[0]
        assert (moved[0] > 2 * moved[3]) == is_local, (name, moved)


def test_deformable_attention_equals_grid_sample() -> None:
    torch.manual_seed(0)
    settings = DAbstractorSettings(hidden_size=24, num_heads=4, num_points=3)
    attention = DeformableAttention(settings)
    queries, values, points = torch.randn(2, 5, 24), torch.randn(2, 49, 24), torch.rand(1, 5, 2)
    with torch.no_grad():
        attention.offsets.weight.mul_(20)  # moves some points outside the map
        output = attention(queries, points, values, 7)
        offsets = attention.offsets(queries).view(2, 5, 4, 3, 2)
        grid = 2 * (points[:, :, None, None] + offsets / 7) - 1
        assert (grid.abs() > 1.2).any()
        maps = attention.value(values).view(2, 7, 7, 4, 6).permute(0, 3, 4, 1, 2).flatten(0, 1)
        sampled = F.grid_sample(maps, grid.transpose(1, 2).flatten(0, 1), align_corners=False)  # (B·heads, 6, 5, 3)
        weights = attention.weights(queries).view(2, 5, 4, 3).softmax(-1).transpose(1, 2).flatten(0, 1)
        read = (sampled * weights[:, None]).sum(-1).view(2, 24, 5).transpose(1, 2)
        torch.testing.assert_close(output, attention.output(read), rtol=1e-4, atol=1e-5)


def test_reference_points_start_on_a_grid_with_offsets_in_all_directions() -> None:
    projector: Any = small("d-abstractor", num_tokens=4)
    assert projector.reference_points.tolist() == [[[0.125, 0.125], [0.875, 0.125], [0.125, 0.875], [0.875, 0.875]]]
    bias = projector.layers[0].deformable.offsets.bias.view(4, 4, 2)
    assert bias[0].tolist() == [[1, 0], [2, 0], [3, 0], [4, 0]]
    assert math.isclose(bias.sum().item(), 0, abs_tol=1e-5)


def test_pooled_map_can_be_used_as_positions_as_queries_or_not_at_all() -> None:
    outputs = [small("d-abstractor", pooled_map=use).eval()(features()) for use in ("position", "query", "off")]
    assert not torch.allclose(outputs[0], outputs[1]) and not torch.allclose(outputs[1], outputs[2])
    unpooled = small("d-abstractor", pooled_map="off")
    assert unpooled.get_parameter("queries").shape == (16, 48)
