"""Checkpoints that are refused, with the file and the key by name, and nothing left behind."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from official_checkpoints import config_of, state_of, write
from torch import Tensor

from model.official_checkpoint import import_official
from model.weight_files import CheckpointError

HEAD = "language_model.lm_head.weight"
BIAS = "abstractor.net.0.bias"


def refused(given: Path, tokenizer: Path, message: str) -> None:
    """It is an error of that message, and leaves nothing behind."""
    output = given.parent / "refused"
    with pytest.raises(CheckpointError, match=message):
        import_official(given, output, str(tokenizer))
    assert not output.exists() and not list(given.parent.glob(".*.partial"))


# --- configurations ---


@pytest.mark.parametrize(
    "change, message",
    [
        ({"feature_layer_index": [-1, -4]}, r"feature_layer_index is \[-1, -4\]: only one layer"),
        ({"feature_layer_index": -7}, "vision_layer is -7, but the vision encoder has 3 layers"),
        ({"projector_type": "honey"}, "unknown projector_type 'honey'"),
        ({"num_query_tokens": 10}, "num_query_tokens is 10, but num_queries is 4"),
        ({"num_feature_levels": 4}, "num_feature_levels is 4 .* only 1"),
    ],
)
def test_configurations_that_are_not_supported(
    tmp_path: Path, plain_tokenizer: Path, change: dict[str, Any], message: str
) -> None:
    config = config_of("d-abs")
    config["projector_config"] |= change
    refused(write(tmp_path / "given", config, state_of("d-abs")), plain_tokenizer, message)


@pytest.mark.parametrize(
    "part_of, change, message",
    [
        ("vision_config", {"encoder_type": "hivit"}, "encoder_type is 'hivit': only 'openai.clip'"),
        ("vision_config", {"hidden_size": "wide"}, "vision_config: .*hidden_size"),
        ("vision_config", {"patch_size": 0}, "config.json: .*zero"),
        ("vision_config", {"image_mean": "red"}, "image_mean and image_std must be three numbers"),
        ("text_config", {"model_type": "opt"}, "text_config.model_type is 'opt': only llama"),
    ],
)
def test_parts_that_are_not_supported(
    tmp_path: Path, plain_tokenizer: Path, part_of: str, change: dict[str, Any], message: str
) -> None:
    config = config_of("linear")
    config[part_of] |= change
    refused(write(tmp_path / "given", config, state_of("linear")), plain_tokenizer, message)


# --- bad files ---


@pytest.mark.parametrize("form, file", [("torch", "pytorch_model.bin"), ("safetensors", "model.safetensors")])
@pytest.mark.parametrize(
    "change, message",
    [
        ({HEAD: None}, rf"given lacks '{HEAD}'"),
        ({BIAS: None}, rf"given lacks '{BIAS}'"),
        ({"abstractor.extra": torch.zeros(2)}, "FILE: 'abstractor.extra' is no weight of this model"),
        ({"base_model.lora_A": torch.zeros(2)}, "FILE: 'base_model.lora_A' is no weight of this model"),
        ({HEAD: torch.zeros(3, 24)}, rf"FILE: '{HEAD}' has shape \(3, 24\), expected \(320, 24\)"),
        ({BIAS: torch.zeros(7)}, rf"FILE: '{BIAS}' has shape \(7,\), expected \(24,\)"),
        ({HEAD: torch.full((320, 24), float("nan"))}, f"FILE: '{HEAD}' has values that are not finite"),
        ({BIAS: torch.full((24,), float("inf"))}, f"FILE: '{BIAS}' has values that are not finite"),
        ({HEAD: torch.zeros(320, 24, dtype=torch.int8)}, f"FILE: '{HEAD}' must be a dense tensor of fp32"),
    ],
)
def test_weights_that_do_not_fit(
    tmp_path: Path, plain_tokenizer: Path, form: str, file: str, change: dict[str, Tensor | None], message: str
) -> None:
    state = {key: tensor for key, tensor in {**state_of("linear"), **change}.items() if tensor is not None}
    given = write(tmp_path / "given", config_of("linear"), state, form)
    refused(given, plain_tokenizer, message.replace("FILE", file))


@pytest.mark.parametrize("form", ["torch", "safetensors"])
@pytest.mark.parametrize("shards", [1, 2])
def test_files_that_end_early(tmp_path: Path, plain_tokenizer: Path, form: str, shards: int) -> None:
    given = write(tmp_path / "given", config_of("linear"), state_of("linear"), form, shards)
    file = max(path for path in given.iterdir() if path.suffix in (".bin", ".safetensors"))
    whole = file.read_bytes()
    for size in (0, 5, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        refused(given, plain_tokenizer, f"{file.name} is no whole")


class Command:
    """What a hostile file might do when it is unpickled."""

    def __init__(self, directory: Path):
        self.directory = directory

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.directory),)


def test_nothing_but_tensors_is_unpickled(tmp_path: Path, plain_tokenizer: Path) -> None:
    given = write(tmp_path / "given", config_of("linear"), state_of("linear"))
    file = given / "pytorch_model.bin"
    torch.save({**state_of("linear"), "abstractor.extra": Command(tmp_path / "made")}, file)
    refused(given, plain_tokenizer, "pytorch_model.bin holds more than tensors")
    torch.save(state_of("linear"), file, _use_new_zipfile_serialization=False)
    refused(given, plain_tokenizer, "pytorch_model.bin is no whole file of torch.save in its zip form")
    file.write_bytes(pickle.dumps(Command(tmp_path / "made")))
    refused(given, plain_tokenizer, "pytorch_model.bin")
    torch.save({**state_of("linear"), HEAD: torch.zeros(320, 24).to_sparse()}, file)
    refused(given, plain_tokenizer, f"pytorch_model.bin: '{HEAD}' must be a dense tensor")
    torch.save({"model": state_of("linear")}, file)
    refused(given, plain_tokenizer, "pytorch_model.bin must hold a dict of names to tensors")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", ["../outside.bin", "/etc/passwd", "..", "", "a/../b.bin", "sub/x.bin", "..\\x.bin", 3])
def test_an_index_stays_in_its_directory(tmp_path: Path, plain_tokenizer: Path, name: Any) -> None:
    given = write(tmp_path / "given", config_of("linear"), state_of("linear"), shards=2)
    (given / "pytorch_model-00002-of-00002.bin").rename(tmp_path / "outside.bin")
    edit_index(given, lambda shards: {k: name if v.endswith("2.bin") else v for k, v in shards.items()})
    refused(given, plain_tokenizer, r"index\.json: '.*' is in .*, which is no name of a file beside it")


def edit_index(given: Path, change: Callable[[dict[str, str]], Any]) -> None:
    path = given / "pytorch_model.bin.index.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps({**index, "weight_map": change(index["weight_map"])}))


def test_an_index_that_does_not_fit_its_shards(tmp_path: Path, plain_tokenizer: Path) -> None:
    state = state_of("linear")
    given = write(tmp_path / "given", config_of("linear"), state, shards=2)
    index = given / "pytorch_model.bin.index.json"
    whole = index.read_text()
    one, two = "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"

    edit_index(given, lambda shards: {key: name for key, name in shards.items() if key != BIAS})
    refused(given, plain_tokenizer, f"'{BIAS}' is not listed for this file in the index")
    index.write_text(whole)
    edit_index(given, lambda shards: {**shards, "abstractor.other": one})
    refused(given, plain_tokenizer, f"{one} lacks 'abstractor.other', which the index lists for it")
    index.write_text(whole.replace(f'"{BIAS}":', f'"{BIAS}": "{one}", "{BIAS}":'))
    refused(given, plain_tokenizer, rf"index\.json: '{BIAS}' stands twice")
    index.write_text(whole[:-9])
    refused(given, plain_tokenizer, r"index\.json is no JSON")
    index.write_text('{"weight_map": {}}')
    refused(given, plain_tokenizer, r"index\.json must have a weight_map")
    index.write_text(whole)

    held = torch.load(given / two, weights_only=True)
    other = next(iter(torch.load(given / one, weights_only=True)))
    torch.save({**held, other: state[other]}, given / two)
    refused(given, plain_tokenizer, f"'{other}' stands in .*{one} and again in .*{two}")
    (given / two).unlink()
    refused(given, plain_tokenizer, rf"index\.json: '.*' is in {two}, which is not there")
    index.unlink()
    refused(given, plain_tokenizer, "there are no weights in .*given")


def test_what_is_no_checkpoint(tmp_path: Path, plain_tokenizer: Path) -> None:
    given = write(tmp_path / "given", config_of("linear"), state_of("linear"))
    (given / "config.json").write_text('{"model_type": "llama"}')
    refused(given, plain_tokenizer, r"given: config\.json: vision_config lacks")
    (given / "config.json").write_text("[]")
    refused(given, plain_tokenizer, r"config\.json must hold an object")
    (given / "config.json").unlink()
    refused(given, plain_tokenizer, r"config\.json is not there")
    (given / "adapter_config.json").write_text("{}")
    refused(given, plain_tokenizer, r"adapter_config\.json: this is a LoRA adapter without its model")
