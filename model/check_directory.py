"""Checks whether a directory contains a model, without importing torch."""

import json
from pathlib import Path

from pipelines.core.integrity import check, lists_checksums

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")  # of pretrained parts; only tensors are unpickled
_POINTER = b"version https://git-lfs"  # the beginning of a file that Git LFS did not download
MODEL_TYPE = "honeybee"


_AGAIN = "download or copy the model again"


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
    check_weights(directory)
    if lists_checksums(directory):
        check(directory)


def check_weights(directory: Path) -> None:
    """Raises ModelError if the weight files of a model, or of a pretrained part, are missing, incomplete or no weights.
    Reads only the beginnings of the files."""
    found = next((directory / name for name in (*WEIGHTS, *PICKLED) if (directory / name).is_file()), None)
    if found is None:
        raise ModelError(f"there are no weights ({' or '.join((*WEIGHTS, *PICKLED))}) in {directory}")
    for path in [found] if found.suffix != ".json" else [directory / name for name in _indexed(found)]:
        if not path.is_file():
            raise ModelError(f"{path} is missing, although {found.name} lists it: {_AGAIN}")
        _check_file(path)


def _check_file(path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        if not size or _POINTER.startswith(head):
            raise ModelError(f"{path} holds no weights, but is empty or a Git LFS pointer: {_AGAIN}")
        if path.suffix != ".safetensors":
            return
        length = int.from_bytes(head, "little")
        try:
            header = json.loads(file.read(length)) if length <= size else {}
            end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise ModelError(f"{path} is not a complete safetensors file: {_AGAIN}") from None
    if size != 8 + length + end:
        raise ModelError(f"{path} has {size:,} bytes, but its header describes {8 + length + end:,}: {_AGAIN}")


def _indexed(index: Path) -> list[str]:
    """Returns the files of a weight index. Raises ModelError if it is malformed or refers to files outside its
    directory."""
    try:
        files = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        outside = next((name for name in files if Path(name).name != name or name in ("", ".", "..")), None)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{index} is not a valid weight index: {type(error).__name__}: {error}") from None
    if outside is not None:
        raise ModelError(f"{index} lists {outside!r}, which is not a file in its directory")
    return files
