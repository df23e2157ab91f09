"""MLP projector: an MLP with SiLU per feature; requires M = N like the linear projector (paper section 3.2)."""

from model.projectors.base import PositiveInt, Settings
from model.projectors.linear import LinearProjector


class MLPSettings(Settings):
    depth: PositiveInt = 2


class MLPProjector(LinearProjector):
    name = "mlp"
    settings_type = MLPSettings
    settings: MLPSettings

    @property
    def depth(self) -> int:
        return self.settings.depth
