"""The Honeybee model. Its classes are loaded when they are asked for, since torch and transformers take seconds."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.auto import HoneybeeConfig, HoneybeeForConditionalGeneration, HoneybeeImageProcessor, HoneybeeProcessor

__all__ = ["HoneybeeConfig", "HoneybeeForConditionalGeneration", "HoneybeeImageProcessor", "HoneybeeProcessor"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from model import auto

    return getattr(auto, name)
