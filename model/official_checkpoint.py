"""Checkpoints as the paper's authors released them → model directories of ours, and back; no bit of a weight changes.

Source: their model class. Keys stand under `vision_model.` (a CLIPVisionModel), `abstractor.` (model/official.py) and
`language_model.` (a LlamaForCausalLM). Their code holds visual tokens by negative ids, ours by the token `<image>`,
so that our tables of embeddings have a row more.
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

from model import pretrained as backbone
from model.configuration import HoneybeeConfig
from model.modeling import HoneybeeForConditionalGeneration
from model.official import official_state, projector_from_official
from model.official_config import from_official, normalisation, projector_part, refuse_other, to_official
from model.processing import CHAT_TEMPLATES, HoneybeeImageProcessor, HoneybeeProcessor
from model.weight_files import SHARD_BYTES, CheckpointError, Weights, read_json, write_weights
from pipelines.store import partial_of, write_atomic
from pipelines.tokenizer import TokenizerError, add_image_token

KEPT = "official"  # directory of a model: what is in their checkpoint besides weights, to go back from
PREFIXES = {"vision.": "vision_model.vision_model.", "llm.": "language_model.", "projector.": "abstractor."}
TABLES = ("llm.model.embed_tokens.weight", "llm.lm_head.weight")  # a row for each token
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")
_OTHERS = ("config.json", "generation_config.json", "added_tokens.json", *_TOKENIZER)
# buffers that older transformers wrote: they follow from the configuration, and are no weights
_BUFFERS = re.compile(r"\.(position_ids|rotary_emb\.inv_freq)$")


def import_official(
    checkpoint: Path,
    output: Path,
    tokenizer: str | None = None,
    vision: str | None = None,
    llm: str | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> HoneybeeConfig:
    """Writes the directory of a model that computes what the checkpoint's does; whole, or not at all.

    checkpoint: a directory with config.json and weights. output: absent or empty. tokenizer: a directory or hub name,
    needed where the checkpoint has none (the released ones have none: theirs is Llama 2's). vision, llm: as in
    `from_official`. The precision of every weight is kept. A position embedding's row for the class token, which old
    checkpoints have and nothing reads, is left out. Memory: one file of `shard_bytes`, and the projector.

    Raises CheckpointError, naming file and key, for whatever does not fit; OSError where the disk is full.
    """
    if (checkpoint / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{checkpoint / 'adapter_config.json'}: this is a LoRA adapter without its model; merge it into its base "
            "first (peft's merge_and_unload, then save_pretrained)"
        )
    official = read_json(checkpoint / "config.json")
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
    config.image_token_id = backbone.image_token_id(with_image)
    rows = max(config.text_config.vocab_size, backbone.token_rows(with_image))

    state = {key.removeprefix("abstractor."): weights.read(key) for key in theirs if key.startswith("abstractor.")}
    projector = projector_from_official(projector_part(official, config), state, config.num_features)
    made = {f"projector.{key}": tensor for key, tensor in projector.state_dict().items()}
    places = {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in made.items()}
    for key, place in weights.places.items():  # in the order of their files, so that each is opened once
        ours = _ours(key)
        if not ours.startswith("projector.") and place.dtype is not None:
            places[ours] = ((rows, *place.shape[1:]) if ours in TABLES else place.shape, place.dtype)

    def read(key: str) -> Tensor:
        if key in made:
            return made[key]
        tensor = weights.read(_theirs(key))
        return _grown(tensor, rows) if key in TABLES else tensor

    config.text_config.vocab_size = rows
    config.architectures = [HoneybeeForConditionalGeneration.__name__]
    config.dtype = places[TABLES[0]][1]
    size = config.vision_config.image_size
    images = HoneybeeImageProcessor(size={"height": size, "width": size}, image_mean=mean, image_std=std)
    template = (CHAT_TEMPLATES / "honeybee.jinja").read_text()
    with_image.chat_template = template
    processor = HoneybeeProcessor(images, with_image, config.num_image_tokens, template)
    with _whole_directory(output) as partial:
        write_weights(partial, places, read, shard_bytes)
        config.save_pretrained(partial)
        backbone.generation_config(with_image, config.image_token_id).save_pretrained(partial)
        processor.save_pretrained(partial)
        _copy(checkpoint, partial / KEPT)
    return config


def export_official(
    model: Path, output: Path, names: dict[str, str] | None = None, shard_bytes: int = SHARD_BYTES
) -> None:
    """Writes a checkpoint for the authors' code, as safetensors; whole, or not at all.

    model: a directory of ours. output: absent or empty. names: `vision`, `llm` and `tokenizer`, under which their
    code finds these parts; needed where the model did not come from a checkpoint of theirs. The row of `<image>` is
    left out, and so are all others that an import added. Raises CheckpointError, naming file and key, for whatever
    does not fit, and for parts that their code lacks; OSError where the disk is full.
    """
    kept = model / KEPT
    if read_json(model / "config.json").get("model_type") != HoneybeeConfig.model_type:
        raise CheckpointError(f"{model / 'config.json'} is not that of a Honeybee model of ours")
    with _naming(model / "config.json"):
        config = HoneybeeConfig.from_pretrained(model)
    images = HoneybeeImageProcessor.from_pretrained(model)
    if images.fit != "stretch":
        raise CheckpointError(f"{model} was trained with image_fit {images.fit}, and their code only stretches")
    vocabulary = config.text_config.vocab_size
    if (kept / "config.json").is_file():
        official = read_json(kept / "config.json")
        refuse_other(official, config)
        rows = from_official(official).text_config.vocab_size
    else:
        rows = vocabulary - 1 if config.image_token_id == vocabulary - 1 else vocabulary
        lacking = [f"--{name}" for name in ("vision", "llm", "tokenizer") if not (names or {}).get(name)]
        if lacking:
            raise CheckpointError(
                f"{model} was not imported from a checkpoint of theirs: say with {', '.join(lacking)} by which names "
                "their code shall load its parts"
            )
        official = to_official(config, names or {}, images.image_mean, images.image_std, rows)
    weights = Weights(model)
    with torch.device("meta"):
        whole = HoneybeeForConditionalGeneration(config)
    weights.check({key: [tuple(t.shape)] for key, t in whole.state_dict().items()}, _optional(config, "llm."))

    projector = whole.projector
    state = {key: weights.read(f"projector.{key}") for key in projector.state_dict()}
    projector.load_state_dict(state, assign=True)
    made = {f"abstractor.{key}": tensor for key, tensor in official_state(projector).items()}
    places = {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in made.items()}
    for key, place in weights.places.items():
        if not key.startswith("projector.") and place.dtype is not None:
            places[_theirs(key)] = ((rows, *place.shape[1:]) if key in TABLES else place.shape, place.dtype)

    def read(key: str) -> Tensor:
        if key in made:
            return made[key]
        ours = _ours(key)
        tensor = weights.read(ours)
        return tensor[:rows] if ours in TABLES else tensor

    with _whole_directory(output) as partial:
        write_weights(partial, places, read, shard_bytes)
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
    """Every key that their checkpoint must have, and its possible shapes."""
    with torch.device("meta"):
        model = HoneybeeForConditionalGeneration(config)
    parts = {"vision.": model.vision.state_dict(), "llm.": model.llm.state_dict()}
    keys = {PREFIXES[part] + key: [tuple(t.shape)] for part, state in parts.items() for key, t in state.items()}
    for key, tensor in official_state(model.projector).items():
        shape = tuple(tensor.shape)
        old = [(1, shape[1] + 1, shape[2])] if key.endswith("pos_emb") else []  # with one for the class token
        keys[f"abstractor.{key}"] = [shape, *old]
    return keys


def _optional(config: HoneybeeConfig, prefix: str) -> list[str]:
    return [f"{prefix}lm_head.weight"] if config.text_config.tie_word_embeddings else []


def _grown(table: Tensor, rows: int) -> Tensor:
    """New rows are the mean of the old, as in `load_llm`."""
    if rows == len(table):
        return table
    return torch.cat([table, table.mean(dim=0, keepdim=True).expand(rows - len(table), -1)])


def _tokenizer(checkpoint: Path, name: str | None) -> PreTrainedTokenizerBase:
    """The tokenizer with `<image>`; the checkpoint's own if no other is named."""
    own = [file for file in _TOKENIZER if (checkpoint / file).is_file()]
    if name is None and not {"tokenizer.json", "tokenizer.model"} & set(own):
        raise CheckpointError(
            f"{checkpoint} has no tokenizer.json: say with --tokenizer where the language model's tokenizer is"
        )
    if name is not None and not Path(name).is_dir() and (name.count("/") > 1 or name.startswith((".", "/", "~"))):
        raise CheckpointError(f"--tokenizer {name}: there is no such directory")  # a hub name is NAME or OWNER/NAME
    with TemporaryDirectory() as alone:
        if name is None:  # their config.json beside it would be read for a model of transformers
            _copy(checkpoint, Path(alone))
            (Path(alone) / "config.json").unlink()
        where = str(checkpoint) if name is None else name
        try:
            tokenizer = AutoTokenizer.from_pretrained(alone if name is None else name, trust_remote_code=False)
            add_image_token(tokenizer, where)
        except TokenizerError:
            raise
        except Exception as error:  # the tokenizers library raises nothing narrower for a bad file
            raise CheckpointError(f"the tokenizer of {where} cannot be read: {error}") from None
    return tokenizer


def _copy(source: Path, target: Path) -> None:
    """Their files besides weights."""
    target.mkdir(exist_ok=True)
    for name in _OTHERS:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


@contextmanager
def _whole_directory(output: Path) -> Iterator[Path]:
    """Yields a directory to fill; it becomes `output` when the block ends without an error, and is removed otherwise.

    Raises CheckpointError where `output` is a file or not empty.
    """
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise CheckpointError(f"{output} is there already: name a new or empty directory")
    output = output.resolve()  # `.` and links have no place beside them otherwise
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_of(output)
    partial.mkdir()
    try:
        yield partial
        partial.replace(output)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Puts the file's directory before messages about it."""
    try:
        yield
    except ValueError as error:
        raise CheckpointError(f"{file.parent}: {error}") from None
