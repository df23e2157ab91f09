"""Linear projector: one linear layer per feature, which preserves locality but requires M = N (paper section 3.2)."""

from torch import Tensor

from model.projectors.base import Projector, Settings, Shape, mlp


class LinearProjector(Projector):
    name = "linear"

    def __init__(self, shape: Shape, settings: Settings):
        super().__init__(shape, settings)
        if shape.num_tokens != shape.num_features:
            raise ValueError(
                f"the {self.name} projector converts each feature to one token: num_tokens must be "
                f"{shape.num_features}, the number of features per image, not {shape.num_tokens}"
            )
        self.net = mlp(self.depth, shape.encoder_width, shape.output_width)

    @property
    def depth(self) -> int:
        return 1

    def project(self, features: Tensor) -> Tensor:
        return self.net(features)
