"""Checks the pretrained models of a recipe: directories for their files, hub names in the local cache or on the hub.

The hub is asked only for a model that is not completely in the local cache. Of such a model, its small files (settings
and tokenizer) are downloaded, since they are checked like those of a directory; weights are not.
"""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from flows.preflight.outcome import Check, Status, failed, tried
from flows.recipe.recipe import Recipe
from model.check_directory import check_weights
from pipelines.tokens.tokenizer import check_tokenizer

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
SMALL_FILES = ["*.json", "*.txt", "*.model"]
TIMEOUT = 10  # seconds to wait for the hub
_LOCAL = re.compile(r"[/~]|\.\.?/|.*/.*/")  # the beginning of a path rather than of `name` or `owner/name`


def check_backbones(recipe: Recipe, training: bool) -> Iterator[Check]:
    """Checks the vision model and the language model. training: if False, only the tokenizer is needed."""
    backbones = recipe.backbones
    if backbones.vision is None or backbones.llm is None:
        yield Check("backbones", Status.OK, "the run trains them first, on the sample corpus")
        return
    offline = is_offline(recipe)
    if training:
        yield _check("backbones.vision", backbones.vision, ("config", "weights"), offline)
    yield _check(
        "backbones.llm",
        backbones.llm,
        ("config", "weights", "tokenizer") if training else ("config", "tokenizer"),
        offline,
    )


def is_local(model: str) -> bool:
    """Whether a model is a directory, or written like one, rather than a hub name."""
    return Path(model).is_dir() or _LOCAL.match(model) is not None


def is_offline(recipe: Recipe) -> str | None:
    """Returns the variable that keeps this run or its ranks from asking the hub, or None."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if recipe.launch.env.get(name, "").upper() in ("1", "ON", "YES", "TRUE"):  # as the hub's client reads it
            return f"launch.env sets {name}"
    return None


def _check(item: str, model: str, parts: tuple[str, ...], offline: str | None) -> Check:
    if is_local(model):
        directory = Path(model)
        if not directory.is_dir():
            return failed(item, f"{model} is not a directory: put the model there, or correct the recipe")
        lacks = _lacks({path.name for path in directory.iterdir()}, parts)
        if lacks:
            return failed(
                item,
                f"{model} is not a complete model directory: it has no {' and no '.join(lacks)}. Put the files there, "
                f"e.g. with `hf download NAME --local-dir {model}`",
            )
        return _contents(item, model, directory, parts, model)
    return _check_hub(item, model, parts, offline)


def _lacks(files: Iterable[str], parts: tuple[str, ...]) -> list[str]:
    """Returns the kinds of files that a model lacks."""
    names = set(files)
    wanted = {"config": (CONFIG,), "weights": WEIGHTS, "tokenizer": TOKENIZERS}
    kinds = {
        "config": CONFIG,
        "weights": f"weights ({WEIGHTS[0]} or {WEIGHTS[2]})",
        "tokenizer": "tokenizer (tokenizer.json)",
    }
    return [kinds[part] for part in parts if not names & set(wanted[part])]


def _contents(item: str, model: str, directory: Path, parts: tuple[str, ...], where: str) -> Check:
    """Checks the files of a model, which are all there."""
    problems = list(tried(item, _check_config, directory / CONFIG))
    if "weights" in parts:
        problems += tried(item, check_weights, directory)
    if "tokenizer" in parts:
        problems += tried(item, check_tokenizer, model)
    return problems[0] if problems else Check(item, Status.OK, where)


def _check_config(path: Path) -> None:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("model_type"), str):
        raise ValueError(f"{path} must be a JSON object with `model_type`: it is not the configuration of a model")


def _check_hub(item: str, model: str, parts: tuple[str, ...], offline: str | None) -> Check:
    from huggingface_hub import HfApi, errors, snapshot_download, try_to_load_from_cache

    download = f"run `hf download {model}` where the hub can be reached, or give the directory of the model"
    try:
        config = try_to_load_from_cache(model, CONFIG)
        directory = Path(config).parent if isinstance(config, str) else None
    except errors.HFValidationError as error:
        return failed(item, f"{model} is neither a directory nor a valid name on the hub: {error}")
    lacks = [CONFIG] if directory is None else _lacks({path.name for path in directory.iterdir()}, parts)
    if directory is not None and not lacks:
        return _contents(item, model, directory, parts, f"{model}, in the local hub cache")
    cached = f"{model} is not a directory, and the local hub cache has no {' and no '.join(lacks)} of it"
    if offline:
        return failed(item, f"{cached}; {offline}, so nothing is downloaded: {download}")
    try:
        found = HfApi().model_info(model, timeout=TIMEOUT)
        lacks = _lacks([each.rfilename for each in found.siblings or ()], parts)
        if lacks:
            return failed(item, f"{model} on the hub has no {' and no '.join(lacks)}")
        directory = Path(snapshot_download(model, allow_patterns=SMALL_FILES, etag_timeout=TIMEOUT))
    except errors.GatedRepoError:
        return failed(
            item, f"{model} on the hub is gated: accept its terms there, log in with `hf auth login`, then {download}"
        )
    except errors.RepositoryNotFoundError:
        return failed(
            item, f"{model} is not a directory, and the hub has no such model (or it is private): correct the name"
        )
    except Exception as error:  # the hub's other errors, and those of the HTTP library that its version uses
        reason = str(error).strip().partition("\n")[0]
        return Check(
            item,
            Status.NOT_CHECKED,
            f"{cached}; the hub cannot be reached ({type(error).__name__}: {reason}): {download}",
            needed=True,
        )
    checked = _contents(item, model, directory, tuple(part for part in parts if part != "weights"), "")
    return checked if checked.reason else Check(item, Status.OK, f"{model}, on the hub; the run downloads the weights")
