"""Converts the checkpoints released by the paper's authors to our model directories and back, without loss.

Source: their model class. Keys are prefixed with `vision_model.` (a CLIPVisionModel), `abstractor.` (see
model/official/projectors.py) or `language_model.` (a LlamaForCausalLM). Their code marks visual tokens by negative ids,
ours by the token `<image>`, so that our embedding tables have an additional row.
"""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from model import load_backbones
from model.configuration import HoneybeeConfig
from model.modeling import HoneybeeForConditionalGeneration
from model.official.config import check_same_config, from_official, normalisation, projector_part, to_official
from model.official.projectors import official_state, projector_from_official
from model.official.weight_files import SHARD_BYTES, WeightFileError, Weights, read_json_object, write_weights
from model.processing import HoneybeeImageProcessor, HoneybeeProcessor
from pipelines.core.files import temporary_path, write_atomic
from pipelines.tokens.chat_style import load_chat_template
from pipelines.tokens.tokenizer import TokenizerError, add_image_token

OFFICIAL_DIR = "official"  # subdirectory of a model with the checkpoint's other files, which an export restores
PREFIXES = {"vision.": "vision_model.vision_model.", "llm.": "language_model.", "projector.": "abstractor."}
EMBEDDING_KEYS = ("llm.model.embed_tokens.weight", "llm.lm_head.weight")  # one row per token
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")
_OTHERS = ("config.json", "generation_config.json", "added_tokens.json", *_TOKENIZER)
# buffers that older versions of transformers saved; they are derived from the configuration
_BUFFERS = re.compile(r"\.(position_ids|rotary_emb\.inv_freq)$")


def import_official(
    checkpoint: Path,
    output: Path,
    tokenizer: str | None = None,
    vision: str | None = None,
    llm: str | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> HoneybeeConfig:
    """Converts a checkpoint to a model directory that computes the same outputs; writes it completely or not at all.

    checkpoint: a directory with config.json and weights. output: must be absent or empty. tokenizer: a directory or
    hub name, required if the checkpoint has none (the released ones do not include theirs, which is Llama 2's).
    vision, llm: as in `from_official`. Each weight keeps its precision. The position embedding's row for the class
    token, which old checkpoints have but nothing reads, is dropped. Memory: a file of `shard_bytes` and the projector.

    Raises CheckpointError, naming file and key, for any mismatch; OSError if the disk is full.
    """
    if (checkpoint / "adapter_config.json").is_file():
        raise WeightFileError(
            f"{checkpoint / 'adapter_config.json'}: this is a LoRA adapter without its base model; merge it into the "
            "base model first (peft's merge_and_unload, then save_pretrained)"
        )
    official = read_json_object(checkpoint / "config.json")
    with _naming(checkpoint / "config.json"):
        config = from_official(official, vision, llm)
        mean, std = normalisation(official)
    weights = Weights(checkpoint)
    for key in [key for key in weights.places if _BUFFERS.search(key)]:
        del weights.places[key]
    with _naming(checkpoint / "config.json"):
        theirs = _official_keys(config)
    weights.check(theirs, _optional(config, "language_model."))
    with_image = _tokenizer(checkpoint, tokenizer)
    config.image_token_id = load_backbones.image_token_id(with_image)
    rows = max(config.text_config.vocab_size, load_backbones.token_rows(with_image))

    state = {key.removeprefix("abstractor."): weights.read(key) for key in theirs if key.startswith("abstractor.")}
    projector = projector_from_official(projector_part(official, config), state, config.num_features)
    converted = {f"projector.{key}": tensor for key, tensor in projector.state_dict().items()}
    specs = {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in converted.items()}
    for key, place in weights.places.items():  # in file order, so that each file is opened once
        ours = _ours(key)
        if not ours.startswith("projector.") and place.dtype is not None:
            specs[ours] = ((rows, *place.shape[1:]) if ours in EMBEDDING_KEYS else place.shape, place.dtype)

    def read(key: str) -> Tensor:
        if key in converted:
            return converted[key]
        tensor = weights.read(_theirs(key))
        return _grown(tensor, rows) if key in EMBEDDING_KEYS else tensor

    config.text_config.vocab_size = rows
    config.architectures = [HoneybeeForConditionalGeneration.__name__]
    config.dtype = specs[EMBEDDING_KEYS[0]][1]
    size = config.vision_config.image_size
    images = HoneybeeImageProcessor(size={"height": size, "width": size}, image_mean=mean, image_std=std)
    template = load_chat_template("honeybee").text
    with_image.chat_template = template
    processor = HoneybeeProcessor(images, with_image, config.num_image_tokens, template)
    with _whole_directory(output) as partial:
        write_weights(partial, specs, read, shard_bytes)
        config.save_pretrained(partial)
        load_backbones.generation_config(with_image, config.image_token_id).save_pretrained(partial)
        processor.save_pretrained(partial)
        _copy(checkpoint, partial / OFFICIAL_DIR)
    return config


def export_official(
    model: Path, output: Path, names: dict[str, str] | None = None, shard_bytes: int = SHARD_BYTES
) -> None:
    """Writes a safetensors checkpoint for the authors' code, completely or not at all.

    model: one of our model directories. output: must be absent or empty. names: directories or hub names `vision`,
    `llm` and `tokenizer` from which their code loads these parts; required unless the model was imported from one of
    their checkpoints. The row of `<image>` and all other rows that an import added are dropped. Raises CheckpointError,
    naming file and key, for any mismatch and for parts that their code does not support; OSError if the disk is full.
    """
    kept = model / OFFICIAL_DIR
    if read_json_object(model / "config.json").get("model_type") != HoneybeeConfig.model_type:
        raise WeightFileError(f"{model / 'config.json'} is not the configuration of one of our Honeybee models")
    with _naming(model / "config.json"):
        config = HoneybeeConfig.from_pretrained(model)
    images = HoneybeeImageProcessor.from_pretrained(model)
    if images.fit != "stretch":
        raise WeightFileError(f"{model} was trained with image_fit {images.fit}, but their code supports only stretch")
    vocabulary = config.text_config.vocab_size
    if (kept / "config.json").is_file():
        official = read_json_object(kept / "config.json")
        check_same_config(official, config)
        rows = from_official(official).text_config.vocab_size
    else:
        rows = vocabulary - 1 if config.image_token_id == vocabulary - 1 else vocabulary
        missing = [f"--{name}" for name in ("vision", "llm", "tokenizer") if not (names or {}).get(name)]
        if missing:
            raise WeightFileError(
                f"{model} was not imported from one of their checkpoints: use {', '.join(missing)} to specify where "
                "their code loads these parts from"
            )
        official = to_official(config, names or {}, images.image_mean, images.image_std, rows)
    weights = Weights(model)
    with torch.device("meta"):
        skeleton = HoneybeeForConditionalGeneration(config)
    weights.check({key: [tuple(t.shape)] for key, t in skeleton.state_dict().items()}, _optional(config, "llm."))

    projector = skeleton.projector
    state = {key: weights.read(f"projector.{key}") for key in projector.state_dict()}
    projector.load_state_dict(state, assign=True)
    converted = {f"abstractor.{key}": tensor for key, tensor in official_state(projector).items()}
    specs = {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in converted.items()}
    for key, place in weights.places.items():
        if not key.startswith("projector.") and place.dtype is not None:
            specs[_theirs(key)] = ((rows, *place.shape[1:]) if key in EMBEDDING_KEYS else place.shape, place.dtype)

    def read(key: str) -> Tensor:
        if key in converted:
            return converted[key]
        ours = _ours(key)
        tensor = weights.read(ours)
        return tensor[:rows] if ours in EMBEDDING_KEYS else tensor

    with _whole_directory(output) as partial:
        write_weights(partial, specs, read, shard_bytes)
        if (kept / "config.json").is_file():
            _copy(kept, partial)
        else:
            write_atomic(partial / "config.json", json.dumps(official, indent=2) + "\n")


def _ours(key: str) -> str:
    return _with_prefix(key, {theirs: ours for ours, theirs in PREFIXES.items()})


def _theirs(key: str) -> str:
    return _with_prefix(key, PREFIXES)


def _with_prefix(key: str, prefixes: dict[str, str]) -> str:
    old = next(old for old in prefixes if key.startswith(old))
    return prefixes[old] + key.removeprefix(old)


def _official_keys(config: HoneybeeConfig) -> dict[str, list[tuple[int, ...]]]:
    """Returns every key that their checkpoint must have, with its allowed shapes."""
    with torch.device("meta"):
        model = HoneybeeForConditionalGeneration(config)
    parts = {"vision.": model.vision.state_dict(), "llm.": model.llm.state_dict()}
    keys = {PREFIXES[part] + key: [tuple(t.shape)] for part, state in parts.items() for key, t in state.items()}
    for key, tensor in official_state(model.projector).items():
        shape = tuple(tensor.shape)
        old = [(1, shape[1] + 1, shape[2])] if key.endswith("pos_emb") else []  # with a row for the class token
        keys[f"abstractor.{key}"] = [shape, *old]
    return keys


def _optional(config: HoneybeeConfig, prefix: str) -> list[str]:
    return [f"{prefix}lm_head.weight"] if config.text_config.tie_word_embeddings else []


def _grown(table: Tensor, rows: int) -> Tensor:
    """Extends the table to `rows` rows; new rows are the mean of the old ones, as in `load_llm`."""
    if rows == len(table):
        return table
    return torch.cat([table, table.mean(dim=0, keepdim=True).expand(rows - len(table), -1)])


def _tokenizer(checkpoint: Path, name: str | None) -> PreTrainedTokenizerBase:
    """Loads the named tokenizer, or the checkpoint's own for None, and adds `<image>`."""
    own = [file for file in _TOKENIZER if (checkpoint / file).is_file()]
    if name is None and not {"tokenizer.json", "tokenizer.model"} & set(own):
        raise WeightFileError(
            f"{checkpoint} has no tokenizer.json: use --tokenizer to specify the language model's tokenizer"
        )
    if name is not None and not Path(name).is_dir() and (name.count("/") > 1 or name.startswith((".", "/", "~"))):
        raise WeightFileError(f"--tokenizer {name}: no such directory")  # a hub name is NAME or OWNER/NAME
    with TemporaryDirectory() as isolated:
        if name is None:  # without their config.json, which transformers would mistake for that of one of its models
            _copy(checkpoint, Path(isolated))
            (Path(isolated) / "config.json").unlink()
        where = str(checkpoint) if name is None else name
        try:
            tokenizer = AutoTokenizer.from_pretrained(isolated if name is None else name, trust_remote_code=False)
            add_image_token(tokenizer, where)
        except TokenizerError:
            raise
        except Exception as error:  # the tokenizers library raises plain Exceptions for corrupt files
            raise WeightFileError(f"the tokenizer of {where} cannot be read: {error}") from None
    return tokenizer


def _copy(source: Path, target: Path) -> None:
    """Copies the checkpoint's files other than the weights."""
    target.mkdir(exist_ok=True)
    for name in _OTHERS:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


@contextmanager
def _whole_directory(output: Path) -> Iterator[Path]:
    """Yields a temporary directory; renames it to `output` if the block ends without an error, else removes it.

    Raises CheckpointError if `output` is a file or a non-empty directory.
    """
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise WeightFileError(f"{output} already exists: specify a new or empty directory")
    output = output.resolve()  # the temporary directory is a sibling, which `.` and symbolic links do not have
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = temporary_path(output)
    partial.mkdir()
    try:
        yield partial
        partial.replace(output)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Prefixes errors about the file with its directory."""
    try:
        yield
    except ValueError as error:
        raise WeightFileError(f"{file.parent}: {error}") from None
