"""Resampler: M learned queries cross-attend to the features; any M, but locality is lost (paper section 3.2).

The layer follows the authors' implementation: the residual starts from the normalised queries; keys and values are
computed from the concatenated queries and normalised features; the feed-forward network is gated (SiLU) with an inner
norm. Every layer reads the same features.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.projectors.base import PositiveInt, Projector, Settings, Shape


class ResamplerSettings(Settings):
    hidden_size: PositiveInt = 1024
    num_layers: PositiveInt = 6
    num_heads: PositiveInt = 16
    intermediate_size: PositiveInt = 4096
    layer_norm_eps: float = 1e-6  # of the feed-forward network's inner norm
    dropout: float = 0.1  # of the attention weights, in training only


class ResamplerLayer(nn.Module):
    """queries (B, M, H), features (B, N, H) → queries (B, M, H)."""

    def __init__(self, settings: ResamplerSettings):
        super().__init__()
        width, inner = settings.hidden_size, settings.intermediate_size
        self.num_heads, self.dropout = settings.num_heads, settings.dropout
        self.query_norm = nn.LayerNorm(width)
        self.feature_norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.gate = nn.Linear(width, inner)
        self.up = nn.Linear(width, inner)
        self.inner_norm = nn.LayerNorm(inner, eps=settings.layer_norm_eps)
        self.down = nn.Linear(inner, width)

    def forward(self, queries: Tensor, features: Tensor) -> Tensor:
        queries = self.query_norm(queries)
        read = torch.cat([queries, self.feature_norm(features)], dim=1)
        q, k, v = (
            layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer, x in ((self.query, queries), (self.key, read), (self.value, read))
        )
        attended = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        queries = queries + self.output(attended.transpose(1, 2).flatten(2))
        normed = self.mlp_norm(queries)
        return queries + self.down(self.inner_norm(F.silu(self.gate(normed)) * self.up(normed)))


class Resampler(Projector):
    name = "resampler"
    settings_type = ResamplerSettings
    settings: ResamplerSettings

    def __init__(self, shape: Shape, settings: ResamplerSettings):
        super().__init__(shape, settings)
        if settings.hidden_size % settings.num_heads:
            raise ValueError(
                f"hidden_size {settings.hidden_size} of the resampler must be a multiple of num_heads, "
                f"{settings.num_heads}"
            )
        self.queries = nn.Parameter(torch.empty(1, shape.num_tokens, settings.hidden_size))
        self.input = nn.Linear(shape.encoder_width, settings.hidden_size)
        self.layers = nn.ModuleList(ResamplerLayer(settings) for _ in range(settings.num_layers))
        self.output = nn.Linear(settings.hidden_size, shape.output_width)

    def project(self, features: Tensor) -> Tensor:
        features = self.input(features)
        queries = self.queries.expand(len(features), -1, -1)
        for layer in self.layers:
            queries = layer(queries, features)
        return self.output(queries)
