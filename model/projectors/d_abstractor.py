"""D-Abstractor: each of M learned queries samples a few points of the feature map (paper section 3.2, figure 4).

A decoder as in Deformable DETR (Zhu et al., 2021): self-attention, deformable attention over the map and feed-forward
network, each followed by dropout, residual and norm. Reference points start on a uniform √M×√M grid and are learned.
The map, pooled to √M×√M, is the queries' position embedding.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from model.projectors.base import PositiveInt, Projector, Settings, Shape, square_side


class DAbstractorSettings(Settings):
    hidden_size: PositiveInt = 1024
    num_layers: PositiveInt = 6
    num_heads: PositiveInt = 8
    intermediate_size: PositiveInt = 1024
    num_points: PositiveInt = 4  # points that a query samples per head
    pooled_map: Literal["position", "query", "off"] = "position"  # role of the pooled map; other roles are learned
    dropout: float = 0.1
    position_embedding: bool = True


class DeformableAttention(nn.Module):
    """Each head of a query samples the map at `num_points` positions, with bilinear interpolation and zero padding."""

    def __init__(self, settings: DAbstractorSettings):
        super().__init__()
        width, self.num_heads, self.num_points = settings.hidden_size, settings.num_heads, settings.num_points
        self.offsets = nn.Linear(width, self.num_heads * self.num_points * 2)
        self.weights = nn.Linear(width, self.num_heads * self.num_points)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def initialize(self) -> None:
        """Initialises as Deformable DETR: point p of head h at distance p + 1 in direction 2πh/heads; equal weights."""
        angles = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions = directions / directions.abs().amax(dim=-1, keepdim=True)
        distances = torch.arange(1, self.num_points + 1)
        init.zeros_(self.offsets.weight)
        init.copy_(self.offsets.bias, (directions[:, None] * distances[:, None]).flatten())
        init.zeros_(self.weights.weight)
        init.zeros_(self.weights.bias)

    def forward(self, queries: Tensor, reference_points: Tensor, features: Tensor, side: int) -> Tensor:
        """queries: (B, M, H); reference_points: (1, M, 2), x and y in [0, 1]; features: (B, side², H) → (B, M, H)."""
        heads, points = self.num_heads, self.num_points
        offsets = self.offsets(queries).unflatten(-1, (heads, points, 2)).float()
        weights = self.weights(queries).unflatten(-1, (heads, points)).float().softmax(dim=-1)
        positions = reference_points[:, :, None, None].float() * side + offsets - 0.5
        values = self.value(features).unflatten(-1, (heads, -1))
        return self.output(read_map(values, positions, weights, side).flatten(2))


def read_map(values: Tensor, places: Tensor, weights: Tensor, side: int) -> Tensor:
    """Returns, for each head of each query, the weighted sum of the map at p positions, interpolated bilinearly.

    values: (B, side², heads, width). places: sampling positions, (B, M, heads, p, 2), fp32, x and y in pixels from the
    centre of the first pixel. weights: (B, M, heads, p), fp32 → (B, M, heads, width), as grid_sample with zero padding.

    The four neighbours of each position are summed by an embedding bag, which reads contiguous rows, whereas
    grid_sample gathers single numbers.
    """
    batch, cells, heads, _ = values.shape
    device = values.device
    low = places.floor()
    corners = torch.stack([low, low + 1], dim=-1)  # (B, M, heads, p, 2 axes, 2)
    nearness = torch.stack([low + 1 - places, places - low], dim=-1)
    nearness = nearness.masked_fill((corners < 0) | (corners >= side), 0)  # NaN propagates
    x, y = corners.int().clamp(0, side - 1).unbind(dim=-2)  # int32: half as much to sort in backward as with int64
    cell = y[..., :, None] * side + x[..., None, :]  # (B, M, heads, p, 2, 2)
    near_x, near_y = nearness.unbind(dim=-2)
    shares = weights[..., None, None] * near_y[..., :, None] * near_x[..., None, :]
    table = values.reshape(batch * cells * heads, -1)
    of_head = torch.arange(heads, dtype=torch.int32, device=device)
    of_image = torch.arange(batch, dtype=torch.int32, device=device) * (cells * heads)
    first = of_image[:, None, None] + of_head
    rows = first[..., None] + cell.flatten(-3) * heads  # (B, M, heads, 4p)
    bags = F.embedding_bag(
        rows.flatten(0, 2), table, mode="sum", per_sample_weights=shares.flatten(-3).flatten(0, 2).to(table.dtype)
    )
    return bags.view(batch, -1, heads, bags.shape[-1])


class DecoderLayer(nn.Module):
    """(B, M, H) → (B, M, H); also accepts (1, M, H) if all images share their queries, as before the first layer."""

    def __init__(self, settings: DAbstractorSettings):
        super().__init__()
        width = settings.hidden_size
        self.num_heads = settings.num_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.self_norm = nn.LayerNorm(width)
        self.deformable = DeformableAttention(settings)
        self.deformable_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, settings.intermediate_size)
        self.down = nn.Linear(settings.intermediate_size, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, x: Tensor, position: Tensor, reference_points: Tensor, features: Tensor, side: int) -> Tensor:
        placed = x + position
        q, k, v = (
            layer(y).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer, y in ((self.query, placed), (self.key, placed), (self.value, x))
        )
        attended = F.scaled_dot_product_attention(q, k, v.expand_as(k)).transpose(1, 2).flatten(2)
        x = self.self_norm(x + self.dropout(self.output(attended)))
        x = self.deformable_norm(x + self.dropout(self.deformable(x + position, reference_points, features, side)))
        return self.mlp_norm(x + self.dropout(self.down(F.relu(self.up(x)))))


class DAbstractor(Projector):
    name = "d-abstractor"
    settings_type = DAbstractorSettings
    settings: DAbstractorSettings

    def __init__(self, shape: Shape, settings: DAbstractorSettings):
        width = settings.hidden_size
        super().__init__(shape, settings, position_width=width, end_width=width)
        self.input_side = square_side(shape.num_features, "the number of features per image")
        self.output_side = square_side(shape.num_tokens, "num_tokens of the d-abstractor")
        if width % settings.num_heads:
            raise ValueError(
                f"hidden_size {width} of the d-abstractor must be a multiple of {settings.num_heads} heads"
            )
        self.input = nn.Linear(shape.encoder_width, width) if shape.encoder_width != width else nn.Identity()
        # queries or their positions; if the pooled map is used as neither, both, with the positions first
        self.queries = nn.Parameter(torch.empty(shape.num_tokens, width * (2 if settings.pooled_map == "off" else 1)))
        self.reference_points = nn.Parameter(torch.empty(1, shape.num_tokens, 2))
        self.layers = nn.ModuleList(DecoderLayer(settings) for _ in range(settings.num_layers))
        self.output = nn.Linear(width, shape.output_width) if shape.output_width != width else nn.Identity()

    @torch.no_grad()
    def initialize(self) -> None:
        super().initialize()
        for module in self.modules():
            if isinstance(module, DeformableAttention):
                module.initialize()
        steps = torch.linspace(0.5, self.input_side - 0.5, self.output_side) / self.input_side
        y, x = torch.meshgrid(steps, steps, indexing="ij")
        init.copy_(self.reference_points, torch.stack([x, y], dim=-1).flatten(0, 1)[None])

    def prepare(self, features: Tensor) -> Tensor:
        return super().prepare(self.input(features))

    def project(self, features: Tensor) -> Tensor:
        learned = self.queries[None]
        if self.settings.pooled_map == "off":
            position, queries = learned.chunk(2, dim=-1)
        else:
            feature_map = features.unflatten(1, (self.input_side, self.input_side)).permute(0, 3, 1, 2)
            pooled = F.adaptive_avg_pool2d(feature_map, self.output_side).flatten(2).transpose(1, 2)
            queries, position = (learned, pooled) if self.settings.pooled_map == "position" else (pooled, learned)
        position = position.expand(len(features), -1, -1)
        for layer in self.layers:
            queries = layer(queries, position, self.reference_points, features, self.input_side)
        return queries

    def finish(self, tokens: Tensor) -> Tensor:
        return self.output(super().finish(tokens))
