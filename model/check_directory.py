"""Checks whether a directory contains a model, without importing torch."""

import json
from pathlib import Path

from pipelines.core.integrity import check, lists_checksums

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
MODEL_TYPE = "honeybee"


class ModelError(ValueError):
    """Raised for a directory whose model cannot be used."""


def check_model(directory: Path) -> None:
    """Raises ModelError, naming what is missing, if the directory does not contain a saved Honeybee model, DamagedError
    if it lists the checksums of its files and one of them has changed."""
    advice = "pass the model directory of a run, e.g. runs/sample/latest/model"
    config = directory / "config.json"
    if not config.is_file():
        raise ModelError(f"there is no model (no config.json) in {directory}: {advice}")
    try:
        content = json.loads(config.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{config} is not valid JSON: {error}") from None
    model_type = content.get("model_type") if isinstance(content, dict) else None
    if model_type != MODEL_TYPE:
        raise ModelError(f"{directory} contains a model of type {model_type!r}, not {MODEL_TYPE!r}: {advice}")
    for part in ("vision_config", "text_config", "projector"):
        if not isinstance(content.get(part), dict):
            raise ModelError(f"{config} does not contain the object `{part}`: {advice}")
    if not any((directory / name).is_file() for name in WEIGHTS):
        raise ModelError(f"there are no weights ({' or '.join(WEIGHTS)}) in {directory}: {advice}")
    if not (directory / WEIGHTS[0]).is_file():
        _check_index(directory / WEIGHTS[1])
    if lists_checksums(directory):
        check(directory)


def _check_index(index: Path) -> None:
    """Raises ModelError if the weight index is malformed or refers to files outside its directory."""
    try:
        files = json.loads(index.read_bytes())["weight_map"].values()
        outside = next((name for name in files if Path(name).name != name or name in ("", ".", "..")), None)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{index} is not a valid weight index: {type(error).__name__}: {error}") from None
    if outside is not None:
        raise ModelError(f"{index} lists {outside!r}, which is not a file in its directory")
