"""C-Abstractor: convolution blocks, adaptive average pooling, convolution blocks, MLP (paper section 3.2, figure 4).

The block is RegNet's bottleneck with squeeze-and-excitation ("Designing Network Design Spaces", Y block), stride 1,
one channel per group, SiLU, and LayerNorm over the channels. Features stay in (B, H, W, C) throughout, so that norm and
SiLU read contiguous memory without copies; convolutions see them as (B, C, H, W) in channels-last order.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.projectors.base import Count, PositiveInt, Projector, Settings, Shape, mlp, square_side


class CAbstractorSettings(Settings):
    hidden_size: PositiveInt = 1024
    depth: Count = 3  # L, the number of blocks before the pooling and again after it; 0: only pooling
    mlp_depth: PositiveInt = 2
    position_embedding: bool = True


class Pointwise(nn.Linear):
    """A linear layer of (B, H, W, input_width) → (B, H, W, width) without bias; on the CPU a 1×1 convolution.

    The product of a linear layer depends on the BLAS: MKL's ran at 210 GFLOP/s on an AMD Zen 5, where oneDNN's
    convolution ran at 477; on a Zen 3 both ran at about 70. Other devices and types take the product.
    """

    def __init__(self, input_width: int, width: int):
        super().__init__(input_width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_cpu or x.dtype != torch.float32:
            return super().forward(x)
        return F.conv2d(x.permute(0, 3, 1, 2), self.weight[:, :, None, None]).permute(0, 2, 3, 1)


class BottleneckBlock(nn.Module):
    """(B, H, W, input_width) → (B, H, W, width)."""

    def __init__(self, input_width: int, width: int):
        super().__init__()
        squeezed = round(input_width / 4)
        self.reduce = Pointwise(input_width, width)
        self.reduce_norm = nn.LayerNorm(width)
        self.spatial = nn.Conv2d(width, width, kernel_size=3, padding=1, groups=width, bias=False)
        self.spatial_norm = nn.LayerNorm(width)
        self.squeeze = nn.Linear(width, squeezed)
        self.excite = nn.Linear(squeezed, width)
        self.expand = Pointwise(width, width)
        self.expand_norm = nn.LayerNorm(width)
        self.shortcut: nn.Module = nn.Identity()
        if input_width != width:
            self.shortcut = nn.Sequential(Pointwise(input_width, width), nn.LayerNorm(width))

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.reduce_norm(self.reduce(x)))
        y = self.spatial(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        y = F.silu(self.spatial_norm(y))
        gate = self.excite(F.silu(self.squeeze(y.mean(dim=(1, 2), keepdim=True))))
        y = self.expand_norm(self.expand(y * torch.sigmoid(gate)))
        return F.silu(y + self.shortcut(x))


class CAbstractor(Projector):
    name = "c-abstractor"
    settings_type = CAbstractorSettings
    settings: CAbstractorSettings

    def __init__(self, shape: Shape, settings: CAbstractorSettings):
        super().__init__(shape, settings)
        self.input_side = square_side(shape.num_features, "the number of features per image")
        self.output_side = square_side(shape.num_tokens, "num_tokens of the c-abstractor")
        widths = [shape.encoder_width] + [settings.hidden_size] * 2 * settings.depth
        blocks = [BottleneckBlock(a, b) for a, b in pairwise(widths)]
        self.blocks_before = nn.Sequential(*blocks[: settings.depth])
        self.blocks_after = nn.Sequential(*blocks[settings.depth :])
        self.readout = mlp(settings.mlp_depth, widths[-1], shape.output_width)

    def project(self, features: Tensor) -> Tensor:
        x = features.unflatten(1, (self.input_side, self.input_side))
        x = self.blocks_before(x)
        x = F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), self.output_side).permute(0, 2, 3, 1)
        x = self.blocks_after(x)
        return self.readout(x.flatten(1, 2))
