"""The projectors by name; every file in this folder is imported, so that a new projector is one new file."""

import importlib
import pkgutil

from model.projectors.base import PROJECTORS, Projector, Shape, build_projector

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["PROJECTORS", "Projector", "Shape", "build_projector"]
