"""Registry of the projectors; imports every file in this package, so that adding a projector takes only a new file."""

import importlib
import pkgutil

from model.projectors.base import PROJECTORS, Projector, Shape, build_projector

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["PROJECTORS", "Projector", "Shape", "build_projector"]
