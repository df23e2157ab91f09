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
    except ValueError as error:
        raise ModelError(f"{config} is no JSON: {error}") from None
    model_type = content.get("model_type") if isinstance(content, dict) else None
    if model_type != OWN_TYPE:
        raise ModelError(f"{directory} holds a model of the type {model_type!r}, not {OWN_TYPE!r}: {advice}")
    if not any((directory / name).is_file() for name in WEIGHTS):
        raise ModelError(f"there are no weights ({' or '.join(WEIGHTS)}) in {directory}: {advice}")
