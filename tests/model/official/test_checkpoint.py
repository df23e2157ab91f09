"""Conversion of the authors' checkpoints to ours and back: equal logits, bit-exact weights, rejected inputs."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support.official_checkpoints import CLIP, VOCABULARY, N, config_of, part, parts, state_of, write
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from model import HoneybeeForConditionalGeneration, HoneybeeProcessor
from model.generation.chat import Chat
from model.official.checkpoint import export_official, import_official
from model.official.projectors import projector_from_official
from model.official.weight_files import WeightFileError

pytestmark = pytest.mark.slow

NAMES = ["c-abs", "d-abs", "mlp", "linear", "resampler"]


def weights_of(directory: Path) -> dict[str, Tensor]:
    return {key: tensor for file in sorted(directory.glob("*.safetensors")) for key, tensor in load_file(file).items()}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype and torch.equal(found[key], tensor), key


def by_hand(name: str, ids: list[int], pixel_values: Tensor) -> Tensor:
    """Returns the logits of the parts, assembled as the authors do: begin token, image, text."""
    clip, llama, state = parts(name)
    projector = projector_from_official(part(name), state, N)
    layer = part(name)["feature_layer_index"]
    with torch.no_grad():
        hidden: Any = clip(pixel_values, output_hidden_states=True).hidden_states
        tokens = projector(hidden[layer][:, 1:])
        text: Tensor = llama.get_input_embeddings()(torch.tensor([ids]))
        return llama(inputs_embeds=torch.cat([text[:, :1], tokens, text[:, 1:]], dim=1)).logits


# --- outputs of the imported model, and the export ---


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["torch", "safetensors"])
@pytest.mark.parametrize("shards, early", [(1, False), (3, True)], ids=["single", "sharded, early configuration"])
def test_imported_logits_are_equal_and_export_restores_the_checkpoint(
    tmp_path: Path, plain_tokenizer: Path, name: str, form: str, shards: int, early: bool
) -> None:
    state = state_of(name)
    given = write(tmp_path / "given", config_of(name, early), state, form, shards)
    import_official(given, tmp_path / "ours", str(plain_tokenizer), shard_bytes=40_000 if shards > 1 else 1 << 30)
    assert (tmp_path / "ours" / "model.safetensors.index.json").is_file() == (shards > 1)

    model = HoneybeeForConditionalGeneration.from_pretrained(tmp_path / "ours")
    assert model.config.vision_layer == part(name)["feature_layer_index"]
    assert model.config.image_token_id == VOCABULARY and model.config.text_config.vocab_size == VOCABULARY + 1
    ids = [1, 70, 71, 99, 5]
    input_ids = [1] + [VOCABULARY] * model.config.num_image_tokens + ids[1:]
    pixel_values = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([input_ids]), pixel_values=pixel_values).logits
    expected = by_hand(name, ids, pixel_values)
    torch.testing.assert_close(logits[..., :VOCABULARY], expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.01

    export_official(tmp_path / "ours", tmp_path / "back", shard_bytes=40_000 if shards > 1 else 1 << 30)
    assert_same(weights_of(tmp_path / "back"), state)
    assert (tmp_path / "back" / "config.json").read_bytes() == (given / "config.json").read_bytes()
    import_official(tmp_path / "back", tmp_path / "again", str(plain_tokenizer))
    assert_same(weights_of(tmp_path / "again"), weights_of(tmp_path / "ours"))


@pytest.mark.parametrize("name", ["c-abs", "d-abs"])
def test_precision_of_every_weight_is_preserved(tmp_path: Path, plain_tokenizer: Path, name: str) -> None:
    state = state_of(name, torch.bfloat16)
    given = write(tmp_path / "given", config_of(name), state, shards=2)
    import_official(given, tmp_path / "ours", str(plain_tokenizer))
    kinds = {key.split(".")[0]: tensor.dtype for key, tensor in weights_of(tmp_path / "ours").items()}
    assert kinds["vision"] == kinds["llm"] == torch.bfloat16
    assert kinds["projector"] == (torch.float32 if name == "d-abs" else torch.bfloat16)
    assert HoneybeeForConditionalGeneration.from_pretrained(tmp_path / "ours").llm.dtype == torch.bfloat16
    export_official(tmp_path / "ours", tmp_path / "back")
    assert_same(weights_of(tmp_path / "back"), state)


def test_new_rows_are_the_mean_of_the_old_rows(tmp_path: Path, plain_tokenizer: Path) -> None:
    state = state_of("linear")
    import_official(write(tmp_path / "given", config_of("linear"), state), tmp_path / "ours", str(plain_tokenizer))
    ours = weights_of(tmp_path / "ours")
    for key in ("model.embed_tokens.weight", "lm_head.weight"):
        table = state[f"language_model.{key}"]
        assert torch.equal(ours[f"llm.{key}"][:VOCABULARY], table)
        torch.testing.assert_close(ours[f"llm.{key}"][VOCABULARY:], table.mean(dim=0, keepdim=True))


def test_row_of_the_class_token_is_dropped(tmp_path: Path, plain_tokenizer: Path) -> None:
    state = state_of("c-abs")
    key = "abstractor.pos_emb"
    old = {**state, key: torch.cat([torch.full((1, 1, CLIP.hidden_size), 9.0), state[key]], dim=1)}
    # buffers that older versions of transformers saved
    old["vision_model.vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    old["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(3)
    import_official(write(tmp_path / "given", config_of("c-abs", True), old), tmp_path / "ours", str(plain_tokenizer))
    export_official(tmp_path / "ours", tmp_path / "back")
    assert_same(weights_of(tmp_path / "back"), state)


def test_tied_embeddings_need_no_head(tmp_path: Path, plain_tokenizer: Path) -> None:
    config = config_of("linear")
    config["text_config"]["tie_word_embeddings"] = True
    state = {key: tensor for key, tensor in state_of("linear").items() if not key.endswith("lm_head.weight")}
    import_official(write(tmp_path / "given", config, state), tmp_path / "ours", str(plain_tokenizer))
    model = HoneybeeForConditionalGeneration.from_pretrained(tmp_path / "ours")
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    export_official(tmp_path / "ours", tmp_path / "back")
    assert_same(weights_of(tmp_path / "back"), state)


# --- the imported directory is one of our model directories ---


def test_imported_model_loads_and_chats(tmp_path: Path, plain_tokenizer: Path) -> None:
    given = write(tmp_path / "given", config_of("c-abs"), state_of("c-abs"))
    for file in plain_tokenizer.iterdir():  # a checkpoint that includes a tokenizer
        (given / file.name).write_bytes(file.read_bytes())
    ours = tmp_path / "ours"
    ours.mkdir()  # an empty output directory is allowed
    import_official(given, ours)
    assert isinstance(AutoModelForImageTextToText.from_pretrained(ours), HoneybeeForConditionalGeneration)
    processor: Any = AutoProcessor.from_pretrained(ours)
    assert isinstance(processor, HoneybeeProcessor) and processor.num_image_tokens == 9
    images = processor.image_processor
    assert (images.size.height, images.image_mean, images.image_std) == (32, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    chat = Chat.load(ours)
    list(chat.ask("What is it?", [tmp_path / "red.png"], max_new_tokens=4))
    assert [message["role"] for message in chat.messages] == ["user", "assistant"]
    assert chat.model.generation_config.suppress_tokens == [VOCABULARY]
    export_official(ours, tmp_path / "back")
    back = {path.name: path.read_bytes() for path in (tmp_path / "back").iterdir() if "safetensors" not in path.name}
    assert back == {path.name: path.read_bytes() for path in given.iterdir() if path.suffix == ".json"}


def test_import_and_export_commands(tmp_path: Path, plain_tokenizer: Path) -> None:
    def honeybee(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [Path(sys.executable).with_name("honeybee"), *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, text=True, capture_output=True)

    state = state_of("resampler")
    write(tmp_path / "given", config_of("resampler"), state)
    done = honeybee("import-official", "given", "ours", "--tokenizer", plain_tokenizer)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "ours: resampler projector, 7 tokens per image of 32 pixels, vision encoder layer -1\n"
    done = honeybee("export-official", "ours", "back")
    assert done.returncode == 0, done.stderr
    assert_same(weights_of(tmp_path / "back"), state)
    done = honeybee("import-official", "given", "ours", "--tokenizer", plain_tokenizer)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "honeybee: ours already exists: specify a new or empty directory" in done.stderr


def test_tokenizer_with_the_image_token_leaves_the_tables_unchanged(tmp_path: Path, tiny_backbones: Path) -> None:
    given = write(tmp_path / "given", config_of("linear"), state_of("linear"))
    config = import_official(given, tmp_path / "ours", str(tiny_backbones / "llm"))
    assert config.image_token_id == 3 and config.text_config.vocab_size == VOCABULARY


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("c-abstractor", {"hidden_size": 32, "depth": 1}),
        ("linear", {}),
        ("resampler", {"hidden_size": 32, "num_layers": 2, "num_heads": 4}),
        ("d-abstractor", {"hidden_size": 32, "num_layers": 2}),
        ("mlp", {}),
    ],
)
def test_our_model_can_be_exported_and_imported_again(
    tmp_path: Path, tiny_backbones: Path, name: str, sizes: dict[str, int]
) -> None:
    model = HoneybeeForConditionalGeneration.from_backbones(
        tiny_backbones / "vision",
        tiny_backbones / "llm",
        {"type": name, "num_tokens": 16, "settings": {**sizes, "num_end_tokens": 1}},
        tiny_backbones / "llm",
    )
    model.save_pretrained(tmp_path / "ours")
    HoneybeeProcessor.from_backbones(tiny_backbones / "vision", tiny_backbones / "llm", 17).save_pretrained(
        tmp_path / "ours"
    )
    with pytest.raises(WeightFileError, match="use --llm to specify where their code loads"):
        export_official(tmp_path / "ours", tmp_path / "theirs", {"vision": "a", "tokenizer": "b"})
    names = {"vision": "openai/clip", "llm": "lmsys/vicuna", "tokenizer": "lmsys/vicuna"}
    export_official(tmp_path / "ours", tmp_path / "theirs", names)
    shutil.copytree(tmp_path / "ours", tmp_path / "padded")
    processor = HoneybeeProcessor.from_pretrained(tmp_path / "ours")
    processor.image_processor.fit = "pad"
    processor.save_pretrained(tmp_path / "padded")
    with pytest.raises(WeightFileError, match="was trained with image_fit pad, but their code supports only stretch"):
        export_official(tmp_path / "padded", tmp_path / "none", names)
    import_official(tmp_path / "theirs", tmp_path / "again", str(tiny_backbones / "llm"))
    assert_same(weights_of(tmp_path / "again"), weights_of(tmp_path / "ours"))
    again = HoneybeeForConditionalGeneration.from_pretrained(tmp_path / "again").eval()
    assert again.config.vision_layer == -2
    batch = {"input_ids": torch.tensor([[1] + [3] * 17 + [9]]), "pixel_values": torch.randn(1, 3, 32, 32)}
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, model(**batch).logits)


# --- configurations that only refer to their parts by name ---


def test_part_configurations_are_taken_from_other_sources(tmp_path: Path, plain_tokenizer: Path) -> None:
    config = config_of("linear")
    config["vision_config"] = {"pretrained_vision_name_or_path": "openai/clip", "encoder_type": "openai.clip"}
    del config["text_config"]
    given = write(tmp_path / "given", config, state_of("linear"))
    with pytest.raises(WeightFileError, match=r"vision_config lacks .*: use --vision .* is 'openai/clip'"):
        import_official(given, tmp_path / "ours", str(plain_tokenizer))
    clip, llama, _ = parts("linear")
    clip.save_pretrained(tmp_path / "clip")
    with pytest.raises(WeightFileError, match=r"text_config lacks .*: use --llm .* is 'lmsys/vicuna'"):
        import_official(given, tmp_path / "ours", str(plain_tokenizer), vision=str(tmp_path / "clip"))
    llama.save_pretrained(tmp_path / "llama")
    import_official(given, tmp_path / "ours", str(plain_tokenizer), str(tmp_path / "clip"), str(tmp_path / "llama"))
    HoneybeeForConditionalGeneration.from_pretrained(tmp_path / "ours")
    with pytest.raises(WeightFileError, match=r"is of type llama, but must be clip_vision_model"):
        import_official(given, tmp_path / "o", str(plain_tokenizer), str(tmp_path / "llama"), str(tmp_path / "llama"))


def test_missing_or_corrupt_tokenizer_is_rejected(tmp_path: Path) -> None:
    given = write(tmp_path / "given", config_of("linear"), state_of("linear"))
    with pytest.raises(WeightFileError, match=r"has no tokenizer\.json: use --tokenizer"):
        import_official(given, tmp_path / "ours")
    (given / "tokenizer.json").write_text("{}")
    with pytest.raises(WeightFileError, match=r"the tokenizer of .*given cannot be read"):
        import_official(given, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


# --- rejected outputs and models ---


def test_non_empty_output_is_left_unchanged(tmp_path: Path, plain_tokenizer: Path) -> None:
    given = write(tmp_path / "given", config_of("linear"), state_of("linear"))
    import_official(given, tmp_path / "ours", str(plain_tokenizer))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    (tmp_path / "file").touch()
    for output in (tmp_path / "mine", tmp_path / "file"):
        with pytest.raises(WeightFileError, match="already exists: specify a new or empty directory"):
            import_official(given, output, str(plain_tokenizer))
        with pytest.raises(WeightFileError, match="already exists"):
            export_official(tmp_path / "ours", output)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_corrupt_or_inconsistent_model_is_not_exported(tmp_path: Path, plain_tokenizer: Path) -> None:
    given = write(tmp_path / "given", config_of("linear"), state_of("linear"))
    ours = tmp_path / "ours"
    import_official(given, ours, str(plain_tokenizer))
    complete = (ours / "model.safetensors").read_bytes()
    (ours / "model.safetensors").write_bytes(complete[:-1])
    with pytest.raises(WeightFileError, match=r"model\.safetensors is not a complete safetensors file"):
        export_official(ours, tmp_path / "back")
    (ours / "model.safetensors").write_bytes(complete)
    kept = json.loads((ours / "official" / "config.json").read_text())
    kept["text_config"]["num_hidden_layers"] = 5
    (ours / "official" / "config.json").write_text(json.dumps(kept))
    with pytest.raises(WeightFileError, match=r"text_config.num_hidden_layers is 2 in the model, but 5 in official"):
        export_official(ours, tmp_path / "back")
    with pytest.raises(WeightFileError, match=r"config\.json does not exist"):
        export_official(tmp_path / "nothing", tmp_path / "back")
    assert not (tmp_path / "back").exists() and not list(tmp_path.glob(".*.partial"))
