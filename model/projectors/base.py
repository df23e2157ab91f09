"""Base class of all projectors, which map N visual features to M visual tokens (paper section 3.2)."""

from dataclasses import dataclass
from math import isqrt
from typing import Annotated, Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

PositiveInt = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]

PROJECTORS: dict[str, type["Projector"]] = {}


@dataclass(frozen=True)
class Shape:
    """Dimensions of the mapping (B, N, C) → (B, M, D), without end tokens."""

    num_features: int  # N
    num_tokens: int  # M
    encoder_width: int  # C
    output_width: int  # D


class Settings(BaseModel):
    """Settings that all projectors have in common."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    position_embedding: bool = False  # learned, added to the features
    prenorm: bool = False  # LayerNorm of the features, before the position embedding
    num_end_tokens: Count = 0  # learned tokens appended to the M visual tokens of an image
    initializer_range: Annotated[float, Field(gt=0)] = 0.02


class Projector(GradientCheckpointingLayer):
    """Base class of the projectors. A new projector is a subclass with `name`, `settings_type` and `project`.

    Raises ValueError if the projector type does not support the given N and M.
    """

    name: ClassVar[str]
    settings_type: ClassVar[type[Settings]] = Settings

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        PROJECTORS[cls.name] = cls

    def __init__(
        self, shape: Shape, settings: Settings, position_width: int | None = None, end_width: int | None = None
    ):
        """position_width, end_width: widths of position embedding and end tokens; None means C and D, respectively."""
        super().__init__()
        self.shape, self.settings = shape, settings
        # eps as in the authors' implementation
        self.prenorm = nn.LayerNorm(shape.encoder_width, eps=1e-6) if settings.prenorm else None
        self.position_embedding: nn.Parameter | None = None
        if settings.position_embedding:
            self.position_embedding = nn.Parameter(
                torch.empty(1, shape.num_features, position_width or shape.encoder_width)
            )
        self.end_tokens: nn.Parameter | None = None
        if settings.num_end_tokens:
            self.end_tokens = nn.Parameter(torch.empty(1, settings.num_end_tokens, end_width or shape.output_width))

    def forward(self, features: Tensor) -> Tensor:
        """features: (B, N, C) → (B, M + num_end_tokens, D). Raises ValueError if N or C is not as configured."""
        expected = (self.shape.num_features, self.shape.encoder_width)
        if features.shape[1:] != expected:
            raise ValueError(
                f"the {self.name} projector was built for {expected[0]} features of width {expected[1]} per image, "
                f"but got {tuple(features.shape[1:])}"
            )
        if self.prenorm is not None:
            features = self.prenorm(features)
        return self.finish(self.project(self.prepare(features)))

    def prepare(self, features: Tensor) -> Tensor:
        """Adds the position embedding, if enabled."""
        return features if self.position_embedding is None else features + self.position_embedding

    def project(self, features: Tensor) -> Tensor:
        """Applies the network of the subclass, (B, N, C) → (B, M, D)."""
        raise NotImplementedError

    def finish(self, tokens: Tensor) -> Tensor:
        """Appends the end tokens, if enabled."""
        if self.end_tokens is not None:
            tokens = torch.cat([tokens, self.end_tokens.expand(len(tokens), -1, -1)], dim=1)
        return tokens

    @torch.no_grad()
    def initialize(self) -> None:
        """Initialises as the authors do: normally distributed weights with a small standard deviation, zero biases."""
        std = self.settings.initializer_range
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                init.normal_(module.weight, std=std)
                if module.bias is not None:
                    init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                init.ones_(module.weight)
                init.zeros_(module.bias)
        for parameter in self.parameters(recurse=False):  # position embedding, end tokens and queries of subclasses
            init.trunc_normal_(parameter, std=std)


def build_projector(type: str, shape: Shape, settings: dict[str, Any]) -> Projector:
    """Builds a projector by the name of its type and initialises it with torch's global random generator.

    Raises ValueError for an unknown type or setting, listing the known ones.
    """
    if type not in PROJECTORS:
        raise ValueError(f"unknown projector type {type!r}: the known types are {', '.join(sorted(PROJECTORS))}")
    cls = PROJECTORS[type]
    try:
        checked = cls.settings_type(**settings)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False))
        known = ", ".join(cls.settings_type.model_fields)
        raise ValueError(f"settings of the {type} projector: {problems}; the known settings are {known}") from None
    projector = cls(shape, checked)
    projector.initialize()
    return projector


def mlp(depth: int, input_width: int, output_width: int) -> nn.Sequential:
    """Returns `depth` linear layers with SiLU between them."""
    layers: list[nn.Module] = [nn.Linear(input_width, output_width)]
    for _ in range(depth - 1):
        layers += [nn.SiLU(), nn.Linear(output_width, output_width)]
    return nn.Sequential(*layers)


def square_side(count: int, what: str) -> int:
    """Returns √count. Raises ValueError if it is not an integer; `what` names the count in the message."""
    root = isqrt(count)
    if root**2 != count:
        raise ValueError(f"{what} is {count}, but must be a square number, such as {root**2} or {(root + 1) ** 2}")
    return root
