"""Whether a directory holds a model, told before torch is imported."""

import json
from pathlib import Path

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
OWN_TYPE = "honeybee"


class ModelError(ValueError):
    """A directory whose model cannot be used."""


def check_model(directory: Path) -> None:
    """Raises ModelError, saying what is missing, for a directory that is no saved Honeybee model."""
    advice = "give a run's model directory, e.g. runs/sample/latest/model"
    config = directory / "config.json"
    if not config.is_file():
        raise ModelError(f"there is no model (no config.json) in {directory}: {advice}")
    try:
        content = json.loads(config.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{config} is no JSON: {error}") from None
    model_type = content.get("model_type") if isinstance(content, dict) else None
    if model_type != OWN_TYPE:
        raise ModelError(f"{directory} holds a model of the type {model_type!r}, not {OWN_TYPE!r}: {advice}")
    for part in ("vision_config", "text_config", "projector"):
        if not isinstance(content.get(part), dict):
            raise ModelError(f"{config} has no {part}: {advice}")
    if not any((directory / name).is_file() for name in WEIGHTS):
        raise ModelError(f"there are no weights ({' or '.join(WEIGHTS)}) in {directory}: {advice}")
    if not (directory / WEIGHTS[0]).is_file():
        _check_index(directory / WEIGHTS[1])


def _check_index(index: Path) -> None:
    """Raises ModelError for an index that is none, or leads out of its directory."""
    try:
        files = json.loads(index.read_bytes())["weight_map"].values()
        outside = next((name for name in files if Path(name).name != name or name in ("", ".", "..")), None)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{index} is no index of weights: {type(error).__name__}: {error}") from None
    if outside is not None:
        raise ModelError(f"{index} names {outside!r}, which is no file of its directory")
