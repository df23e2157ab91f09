"""Reads the weight files of a model directory tensor by tensor: safetensors or PyTorch files, single or sharded."""

import json
import pickle
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipelines.core.files import atomic_file, write_atomic

SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
SHARD_BYTES = 1 << 30
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class WeightFileError(ValueError):
    """Raised for a checkpoint that cannot be used; the message names the file and the key."""


@dataclass(frozen=True)
class TensorInfo:
    """File, shape and dtype of a stored tensor. dtype: None unless it is a dense tensor of fp32, fp16 or bf16."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype | None


class Weights:
    """The tensors of a directory by key; values are read from disk on demand.

    If a directory contains several formats, the precedence is that of transformers: model.safetensors, its shards,
    pytorch_model.bin, its shards. Only tensors are unpickled. Raises CheckpointError, naming file and key, for a
    directory without weights, an index that does not match its shards, a duplicate key and a truncated file.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self.places: dict[str, TensorInfo] = {}
        self._opened: tuple[Path, Callable[[str], Tensor]] | None = None
        files, index = _files(directory)
        for file in files:
            for key, place in _contents(file).items():
                if key in self.places:
                    raise WeightFileError(f"{key!r} is stored in both {self.places[key].file} and {file}")
                if index is not None and index.get(key) != file.name:
                    raise WeightFileError(f"{file}: {key!r} is not listed for this file in the index")
                self.places[key] = place
        for key, name in (index or {}).items():
            if key not in self.places:
                raise WeightFileError(f"{directory / name} lacks {key!r}, which the index lists for it")

    def read(self, key: str) -> Tensor:
        """Reads a tensor into CPU memory. Raises CheckpointError for non-finite values."""
        file = self.places[key].file
        if self._opened is None or self._opened[0] != file:
            self._opened = None  # close one file before the next is opened
            self._opened = (file, _open(file)[1])
        tensor = self._opened[1](key)
        if not torch.isfinite(tensor).all():
            raise WeightFileError(f"{file}: {key!r} contains non-finite values")
        return tensor

    def check(self, expected: Mapping[str, Iterable[tuple[int, ...]]], optional: Iterable[str] = ()) -> None:
        """Raises CheckpointError unless all keys are as expected and every tensor has an allowed shape and dtype.

        expected: key → allowed shapes. optional: keys of `expected` that may be absent.
        """
        problems = [f"{self.directory} lacks {key!r}" for key in expected.keys() - self.places - set(optional)]
        for key, place in self.places.items():
            if key not in expected:
                problems.append(f"{place.file}: {key!r} is not a weight of this model")
                continue
            shapes = list(expected[key])
            if place.shape not in shapes:
                problems.append(f"{place.file}: {key!r} has shape {place.shape}, expected {shapes[0]}")
            elif place.dtype is None:
                problems.append(f"{place.file}: {key!r} must be a dense tensor of fp32, fp16 or bf16")
        if problems:
            problems.sort()
            more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
            raise WeightFileError("; ".join(problems[:8]) + more)


def write_weights(
    directory: Path,
    places: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
    read: Callable[[str], Tensor],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes safetensors, with an index if there is more than one file; keeps one file's tensors in memory at a time.

    places: key → shape and dtype, in the order of the files. read: returns the tensor of a key.
    """
    # meta tensors use no memory and suffice to plan the files
    plan = {key: torch.empty(shape, dtype=dtype, device="meta") for key, (shape, dtype) in places.items()}
    split = split_torch_state_dict_into_shards(plan, max_shard_size=shard_bytes)
    for name, keys in split.filename_to_tensors.items():
        with atomic_file(directory / name) as partial:
            save_file({key: read(key).contiguous() for key in keys}, partial, {"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_atomic(directory / "model.safetensors.index.json", json.dumps(index, indent=1) + "\n")


def read_json_object(path: Path) -> dict[str, Any]:
    """Reads a JSON object. Raises CheckpointError if the file is absent, is not a JSON object or has duplicate keys."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            keys = [key for key, _ in pairs]
            duplicate = next(key for key in keys if keys.count(key) > 1)
            raise WeightFileError(f"{path}: duplicate key {duplicate!r}")
        return result

    if not path.is_file():
        raise WeightFileError(f"{path} does not exist or is not a file")
    try:
        value = json.loads(path.read_text(), object_pairs_hook=unique)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WeightFileError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise WeightFileError(f"{path} must contain a JSON object")
    return value


def _files(directory: Path) -> tuple[list[Path], dict[str, str] | None]:
    """Returns the weight files and, if there is an index, its mapping from key to file name."""
    for name in SINGLE_FILES:
        if (directory / name).is_file():
            return [directory / name], None
        path = directory / f"{name}.index.json"
        if path.is_file():
            index = read_json_object(path).get("weight_map")
            if not isinstance(index, dict) or not index:
                raise WeightFileError(f"{path} must have a weight_map from keys to file names")
            for key, shard in index.items():
                if not isinstance(shard, str) or Path(shard).name != shard or shard in ("", ".", "..") or "\\" in shard:
                    raise WeightFileError(f"{path}: {key!r} refers to {shard!r}, which is not a file in its directory")
                if not (directory / shard).is_file():
                    raise WeightFileError(f"{path}: {key!r} refers to {shard}, which does not exist")
            return [directory / shard for shard in dict.fromkeys(index.values())], index
    names = ", ".join(f"{name}, {name}.index.json" for name in SINGLE_FILES)
    raise WeightFileError(f"there are no weights in {directory}: expected one of {names}")


def _contents(file: Path) -> dict[str, TensorInfo]:
    keys, read = _open(file)
    if not file.name.endswith(".safetensors"):
        tensors = {key: read(key) for key in keys}  # memory-mapped, so that nothing is read yet
        return {key: TensorInfo(file, tuple(t.shape), t.dtype if _is_plain(t) else None) for key, t in tensors.items()}
    with safe_open(file, "pt") as opened:
        slices = {key: opened.get_slice(key) for key in keys}
        return {key: TensorInfo(file, tuple(s.get_shape()), DTYPES.get(s.get_dtype())) for key, s in slices.items()}


def _is_plain(tensor: Tensor) -> bool:
    return tensor.dtype in DTYPES.values() and tensor.layout == torch.strided and tensor.device.type == "cpu"


def _open(file: Path) -> tuple[list[str], Callable[[str], Tensor]]:
    """Returns the keys of a file and a function that reads the tensor of a key."""
    if file.name.endswith(".safetensors"):
        try:
            opened: Any = safe_open(file, "pt")
            return list(opened.keys()), opened.get_tensor
        except (SafetensorError, OSError) as error:
            raise WeightFileError(f"{file} is not a complete safetensors file: {error}") from None
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:  # its own message advises to load the file unsafely
        message = f"{file} contains more than tensors and is therefore not unpickled: use a safetensors file instead"
        raise WeightFileError(message) from None
    except (RuntimeError, OSError, ValueError, EOFError) as error:
        reason = "" if "weights_only" in str(error) else str(error).partition("\n")[0]
        raise WeightFileError(f"{file} is not a complete torch.save file in zip format: {reason}") from None
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise WeightFileError(f"{file} must contain a dict from names to tensors")
    return list(state), state.__getitem__
