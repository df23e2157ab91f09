"""Refuses weight files that hold more than tensors, without the advice of torch to load them unsafely."""

import contextlib
import pickle
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def tensors_only(name: str | Path) -> Iterator[None]:
    """Replaces the error of torch for an unsafe file. name: the model that is loaded, for the message. Raises
    ValueError."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, pickle.UnpicklingError) and "weights_only" not in str(error):
            raise
        message = (
            f"{name} has a weight file that is damaged or contains more than tensors, and is therefore not unpickled: "
            "use a model with safetensors files"
        )
        raise ValueError(message) from None
