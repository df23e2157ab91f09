"""The Honeybee model. Its classes are imported lazily because torch and transformers take seconds to import, and all
together, so that they are registered with the Auto classes of transformers."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.configuration import HoneybeeConfig
    from model.modeling import HoneybeeForConditionalGeneration
    from model.processing import HoneybeeImageProcessor, HoneybeeProcessor

__all__ = ["HoneybeeConfig", "HoneybeeForConditionalGeneration", "HoneybeeImageProcessor", "HoneybeeProcessor"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    for module in ("configuration", "modeling", "processing"):
        globals().update({k: v for k, v in vars(importlib.import_module(f"model.{module}")).items() if k in __all__})
    return globals()[name]
