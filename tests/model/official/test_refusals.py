"""Rejected checkpoints: the error names file and key, and no output is left behind."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.official_checkpoints import config_of, state_of, write
from torch import Tensor

from model.official.checkpoint import import_official
from model.official.weight_files import WeightFileError

HEAD = "language_model.lm_head.weight"
BIAS = "abstractor.net.0.bias"


def assert_rejected(given: Path, tokenizer: Path, message: str) -> None:
    """Asserts that the import fails with this message and leaves no files behind."""
    output = given.parent / "refused"
    with pytest.raises(WeightFileError, match=message) as error:
        import_official(given, output, str(tokenizer))
    assert "weights_only" not in f"{error.value} {error.value.__cause__}"  # torch's advice to load it unsafely
    assert not output.exists() and not list(given.parent.glob(".*.partial"))


# --- configurations ---


@pytest.mark.parametrize(
    "change, message",
    [
        ({"feature_layer_index": [-1, -4]}, r"feature_layer_index is \[-1, -4\], but must be a single layer"),
        ({"feature_layer_index": -7}, "vision_layer is -7, but the vision encoder has 3 layers"),
        ({"projector_type": "honey"}, "unknown projector_type 'honey'"),
        ({"num_query_tokens": 10}, "num_query_tokens is 10, but num_queries is 4"),
        ({"num_feature_levels": 4}, "num_feature_levels is 4 .* but only 1"),
    ],
)
def test_unsupported_configuration_is_rejected(
    tmp_path: Path, plain_tokenizer: Path, change: dict[str, Any], message: str
) -> None:
    config = config_of("d-abs")
    config["projector_config"] |= change
    assert_rejected(write(tmp_path / "given", config, state_of("d-abs")), plain_tokenizer, message)


@pytest.mark.parametrize(
    "part_of, change, message",
    [
        ("vision_config", {"encoder_type": "hivit"}, "encoder_type is 'hivit', but must be 'openai.clip'"),
        ("vision_config", {"hidden_size": "wide"}, "vision_config: .*hidden_size"),
        ("vision_config", {"patch_size": 0}, "config.json: .*zero"),
        ("vision_config", {"image_mean": "red"}, "image_mean and image_std must each be three numbers"),
        ("text_config", {"model_type": "opt"}, "text_config.model_type is 'opt', but must be 'llama'"),
    ],
)
def test_unsupported_part_is_rejected(
    tmp_path: Path, plain_tokenizer: Path, part_of: str, change: dict[str, Any], message: str
) -> None:
    config = config_of("linear")
    config[part_of] |= change
    assert_rejected(write(tmp_path / "given", config, state_of("linear")), plain_tokenizer, message)


# --- corrupt files ---


@pytest.mark.parametrize("form, file", [("torch", "pytorch_model.bin"), ("safetensors", "model.safetensors")])
@pytest.mark.parametrize(
    "change, message",
    [
        ({HEAD: None}, rf"given lacks '{HEAD}'"),
        ({BIAS: None}, rf"given lacks '{BIAS}'"),
        ({"abstractor.extra": torch.zeros(2)}, "FILE: 'abstractor.extra' is not a weight of this model"),
        ({"base_model.lora_A": torch.zeros(2)}, "FILE: 'base_model.lora_A' is not a weight of this model"),
        ({HEAD: torch.zeros(3, 24)}, rf"FILE: '{HEAD}' has shape \(3, 24\), expected \(320, 24\)"),
        ({BIAS: torch.zeros(7)}, rf"FILE: '{BIAS}' has shape \(7,\), expected \(24,\)"),
        ({HEAD: torch.full((320, 24), float("nan"))}, f"FILE: '{HEAD}' contains non-finite values"),
        ({BIAS: torch.full((24,), float("inf"))}, f"FILE: '{BIAS}' contains non-finite values"),
        ({HEAD: torch.zeros(320, 24, dtype=torch.int8)}, f"FILE: '{HEAD}' must be a dense tensor of fp32"),
    ],
)
def test_mismatched_weights_are_rejected(
    tmp_path: Path, plain_tokenizer: Path, form: str, file: str, change: dict[str, Tensor | None], message: str
) -> None:
    state = {key: tensor for key, tensor in {**state_of("linear"), **change}.items() if tensor is not None}
    given = write(tmp_path / "given", config_of("linear"), state, form)
    assert_rejected(given, plain_tokenizer, message.replace("FILE", file))


@pytest.mark.parametrize("form", ["torch", "safetensors"])
@pytest.mark.parametrize("shards", [1, 2])
def test_truncated_files_are_rejected(tmp_path: Path, plain_tokenizer: Path, form: str, shards: int) -> None:
    given = write(tmp_path / "given", config_of("linear"), state_of("linear"), form, shards)
    file = max(path for path in given.iterdir() if path.suffix in (".bin", ".safetensors"))
    complete = file.read_bytes()
    for size in (0, 5, len(complete) // 2, len(complete) - 1):
        file.write_bytes(complete[:size])
        assert_rejected(given, plain_tokenizer, f"{file.name} is not a complete")


class Command:
    """Runs a command when it is unpickled, as a malicious file could do."""

    def __init__(self, directory: Path):
        self.directory = directory

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.directory),)


def test_only_tensors_are_unpickled(tmp_path: Path, plain_tokenizer: Path) -> None:
    given = write(tmp_path / "given", config_of("linear"), state_of("linear"))
    file = given / "pytorch_model.bin"
    torch.save({**state_of("linear"), "abstractor.extra": Command(tmp_path / "made")}, file)
    assert_rejected(given, plain_tokenizer, "pytorch_model.bin contains more than tensors")
    torch.save(state_of("linear"), file, _use_new_zipfile_serialization=False)
    assert_rejected(given, plain_tokenizer, "pytorch_model.bin is not a complete torch.save file in zip format")
    file.write_bytes(pickle.dumps(Command(tmp_path / "made")))
    assert_rejected(given, plain_tokenizer, "pytorch_model.bin")
    torch.save({**state_of("linear"), HEAD: torch.zeros(320, 24).to_sparse()}, file)
    assert_rejected(given, plain_tokenizer, f"pytorch_model.bin: '{HEAD}' must be a dense tensor")
    torch.save({"model": state_of("linear")}, file)
    assert_rejected(given, plain_tokenizer, "pytorch_model.bin must contain a dict from names to tensors")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", ["../outside.bin", "/etc/passwd", "..", "", "a/../b.bin", "sub/x.bin", "..\\x.bin", 3])
def test_index_must_not_refer_to_files_outside_its_directory(tmp_path: Path, plain_tokenizer: Path, name: Any) -> None:
    given = write(tmp_path / "given", config_of("linear"), state_of("linear"), shards=2)
    (given / "pytorch_model-00002-of-00002.bin").rename(tmp_path / "outside.bin")
    edit_index(given, lambda shards: {k: name if v.endswith("2.bin") else v for k, v in shards.items()})
    assert_rejected(given, plain_tokenizer, r"index\.json: '.*' refers to .*, which is not a file in its directory")


def edit_index(given: Path, change: Callable[[dict[str, str]], Any]) -> None:
    path = given / "pytorch_model.bin.index.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps({**index, "weight_map": change(index["weight_map"])}))


def test_index_that_does_not_match_its_shards_is_rejected(tmp_path: Path, plain_tokenizer: Path) -> None:
    state = state_of("linear")
    given = write(tmp_path / "given", config_of("linear"), state, shards=2)
    index = given / "pytorch_model.bin.index.json"
    original = index.read_text()
    one, two = "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"

    edit_index(given, lambda shards: {key: name for key, name in shards.items() if key != BIAS})
    assert_rejected(given, plain_tokenizer, f"'{BIAS}' is not listed for this file in the index")
    index.write_text(original)
    edit_index(given, lambda shards: {**shards, "abstractor.other": one})
    assert_rejected(given, plain_tokenizer, f"{one} lacks 'abstractor.other', which the index lists for it")
    index.write_text(original.replace(f'"{BIAS}":', f'"{BIAS}": "{one}", "{BIAS}":'))
    assert_rejected(given, plain_tokenizer, rf"index\.json: duplicate key '{BIAS}'")
    index.write_text(original[:-9])
    assert_rejected(given, plain_tokenizer, r"index\.json is not valid JSON")
    index.write_text('{"weight_map": {}}')
    assert_rejected(given, plain_tokenizer, r"index\.json must have a weight_map")
    index.write_text(original)

    held = torch.load(given / two, weights_only=True)
    other = next(iter(torch.load(given / one, weights_only=True)))
    torch.save({**held, other: state[other]}, given / two)
    assert_rejected(given, plain_tokenizer, f"'{other}' is stored in both .*{one} and .*{two}")
    (given / two).unlink()
    assert_rejected(given, plain_tokenizer, rf"index\.json: '.*' refers to {two}, which does not exist")
    index.unlink()
    assert_rejected(given, plain_tokenizer, "there are no weights in .*given")


def test_directory_that_is_not_a_checkpoint_is_rejected(tmp_path: Path, plain_tokenizer: Path) -> None:
    given = write(tmp_path / "given", config_of("linear"), state_of("linear"))
    (given / "config.json").write_text('{"model_type": "llama"}')
    assert_rejected(given, plain_tokenizer, r"given: config\.json: vision_config lacks")
    (given / "config.json").write_text("[]")
    assert_rejected(given, plain_tokenizer, r"config\.json must contain a JSON object")
    (given / "config.json").unlink()
    assert_rejected(given, plain_tokenizer, r"config\.json does not exist")
    (given / "adapter_config.json").write_text("{}")
    assert_rejected(given, plain_tokenizer, r"adapter_config\.json: this is a LoRA adapter without its base model")
