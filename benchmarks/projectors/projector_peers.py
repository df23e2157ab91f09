"""The C- and D-Abstractor built from the authors' parts, with a given projector's weights.

C-Abstractor: timm's RegStage if timm can be imported, otherwise the same blocks from transformers' RegNet layers with
another norm and squeeze activation. D-Abstractor: transformers' Deformable DETR decoder layers. This module only joins
the parts.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DeformableDetrConfig, RegNetConfig
from transformers.models.deformable_detr import modeling_deformable_detr as detr
from transformers.models.regnet import modeling_regnet as regnet

from model.official.projectors import official_state
from model.projectors import Projector

try:
    from timm.layers import LayerNorm2d
    from timm.models.regnet import RegStage
except (ImportError, OSError, RuntimeError):  # timm needs a torchvision that is built for the installed torch
    RegStage = None


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, H, W), as timm's LayerNorm2d."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _block(input_width: int, width: int) -> nn.Module:
    layer = regnet.RegNetYLayer(RegNetConfig(hidden_act="silu", groups_width=1), input_width, width)
    for module in list(layer.modules()):
        if isinstance(module, regnet.RegNetConvLayer | regnet.RegNetShortCut):
            module.normalization = ChannelNorm(width)
    layer.layer[2].attention[1] = nn.SiLU()
    return layer


def _stage(depth: int, input_width: int, width: int) -> nn.Module:
    if RegStage is not None:
        return RegStage(depth, input_width, width, stride=1, dilation=1, act_layer=nn.SiLU, norm_layer=LayerNorm2d)
    return nn.Sequential(*(_block(input_width if i == 0 else width, width) for i in range(depth)))


def _regnet_name(theirs: str) -> str:
    """Returns the name in transformers' blocks of a weight that timm calls `theirs`."""
    stage, block, rest = theirs.split(".", 2)
    for timm_part, part in (
        ("downsample.", "shortcut."),
        ("conv1.", "layer.0."),
        ("conv2.", "layer.1."),
        ("se.fc1.", "layer.2.attention.0."),
        ("se.fc2.", "layer.2.attention.2."),
        ("conv3.", "layer.3."),
    ):
        if rest.startswith(timm_part):
            rest = part + rest.removeprefix(timm_part).replace("conv.", "convolution.").replace("bn.", "normalization.")
            break
    return f"{stage}.{int(block[1:]) - 1}.{rest}"


class CAbstractorPeer(nn.Module):
    def __init__(self, ours: Projector):
        super().__init__()
        shape, settings = ours.shape, ours.settings
        side = round(shape.num_tokens**0.5)
        before = _stage(settings.depth, shape.encoder_width, settings.hidden_size)
        after = _stage(settings.depth, settings.hidden_size, settings.hidden_size)
        self.net = nn.Sequential(before, nn.AdaptiveAvgPool2d((side, side)), after)
        self.readout = nn.Sequential(
            nn.Linear(settings.hidden_size, shape.output_width),
            nn.SiLU(),
            nn.Linear(shape.output_width, shape.output_width),
        )
        state = official_state(ours)
        self.pos_emb = nn.Parameter(state.pop("pos_emb").clone())
        net = {name.removeprefix("net."): tensor for name, tensor in state.items() if name.startswith("net.")}
        self.net.load_state_dict(net if RegStage is not None else {_regnet_name(k): v for k, v in net.items()})
        self.readout.load_state_dict({k.removeprefix("readout."): v for k, v in state.items() if k.startswith("read")})

    def forward(self, features: Tensor) -> Tensor:
        x = features + self.pos_emb
        side = round(x.shape[1] ** 0.5)
        x = self.net(x.transpose(1, 2).unflatten(2, (side, side)))
        return self.readout(x.flatten(2).transpose(1, 2))


class DAbstractorPeer(nn.Module):
    def __init__(self, ours: Projector):
        super().__init__()
        shape, settings = ours.shape, ours.settings
        self.side, self.output_side = round(shape.num_features**0.5), round(shape.num_tokens**0.5)
        config = DeformableDetrConfig(
            d_model=settings.hidden_size,
            decoder_attention_heads=settings.num_heads,
            decoder_ffn_dim=settings.intermediate_size,
            decoder_n_points=settings.num_points,
            num_feature_levels=1,
            activation_function="relu",
            dropout=settings.dropout,
        )
        config._attn_implementation = "sdpa"  # what transformers chooses for a whole model
        self.layers = nn.ModuleList(detr.DeformableDetrDecoderLayer(config) for _ in range(settings.num_layers))
        state = official_state(ours)
        own = {}
        for name in self.layers.state_dict():
            their = "layers." + name.replace(".mlp.", ".").replace("self_attn.o_proj", "self_attn.out_proj")
            own[name] = state[their]
        self.layers.load_state_dict(own)
        self.v_pos_emb = nn.Parameter(state["v_pos_emb"].clone())
        self.queries = nn.Parameter(state["query_position_embeddings.weight"].clone())
        self.reference_points = nn.Parameter(state["reference_points"].clone())
        self.output_proj = nn.Linear(settings.hidden_size, shape.output_width)
        self.output_proj.load_state_dict({"weight": state["output_proj.weight"], "bias": state["output_proj.bias"]})
        known = inspect.signature(detr.DeformableDetrDecoderLayer.forward).parameters
        names = ("object_queries_position_embeddings", "position_embeddings")  # the name differs between versions
        self.position_name = next(name for name in names if name in known)

    def forward(self, features: Tensor) -> Tensor:
        batch, side = len(features), self.side
        features = features + self.v_pos_emb
        pooled = F.adaptive_avg_pool2d(features.transpose(1, 2).unflatten(2, (side, side)), self.output_side)
        shared: dict[str, Any] = {
            self.position_name: pooled.flatten(2).transpose(1, 2),
            "reference_points": self.reference_points.expand(batch, -1, -1)[:, :, None],
            "spatial_shapes": torch.tensor([[side, side]], device=features.device),
            "spatial_shapes_list": [(side, side)],
            "level_start_index": torch.zeros(1, dtype=torch.long, device=features.device),
            "encoder_hidden_states": features,
        }
        x = self.queries.expand(batch, -1, -1)
        for layer in self.layers:
            output = layer(x, **shared)
            x = output if isinstance(output, Tensor) else output[0]
        return self.output_proj(x)


def dense(values: Tensor, points: Tensor, weights: Tensor, side: int) -> Tensor:
    """Computes read_map as one matrix product, since bilinear interpolation is a product of two tent functions."""
    tents = (1 - (points.transpose(1, 2)[..., None] - torch.arange(side, device=points.device)).abs()).clamp(min=0)
    x, y = tents.unbind(dim=-2)  # (B, heads, M, p, side)
    attention = ((y * weights.transpose(1, 2)[..., None]).transpose(-1, -2) @ x).flatten(-2)
    return (attention.to(values.dtype) @ values.transpose(1, 2)).transpose(1, 2)


PEERS: dict[str, type[nn.Module]] = {"c-abstractor": CAbstractorPeer, "d-abstractor": DAbstractorPeer}
