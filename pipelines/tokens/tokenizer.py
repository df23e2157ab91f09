"""The tokenizer of a run: the language model's tokenizer with the image token added, kept as a store entry."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from pipelines.core.integrity import check, read_manifest
from pipelines.schema import IMAGE_TOKEN


class TokenizerError(ValueError):
    """A tokenizer that cannot be used for training; the message names what it lacks."""


@dataclass(frozen=True)
class PreparedTokenizer:
    """A loaded tokenizer. `fingerprint` identifies its vocabulary and settings in every manifest."""

    tokenizer: Tokenizer
    fingerprint: str
    image_token_id: int
    bos_token: str
    eos_token: str
    special_tokens: tuple[str, ...]


def check_tokenizer(llm: str) -> None:
    """Raises TokenizerError if prepare_tokenizer would reject the tokenizer of a directory, or of a hub name in the
    local cache."""
    try:
        _load(llm, local_files_only=True)
    except OSError:
        raise TokenizerError(_unreadable(llm)) from None


def _load(llm: str, local_files_only: bool) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            llm, use_fast=True, local_files_only=local_files_only, trust_remote_code=False
        )
    except OSError:
        raise
    except Exception as error:  # parsers raise almost any exception on damaged files
        raise TokenizerError(f"{_unreadable(llm)} ({type(error).__name__}: {str(error).strip()[:200]})") from None
    add_image_token(tokenizer, llm)
    return tokenizer


def _unreadable(llm: str) -> str:
    return f"the tokenizer of {llm} cannot be read: it needs a complete tokenizer.json and tokenizer_config.json"


def add_image_token(tokenizer: Any, name: str) -> None:
    """Adapts a transformers tokenizer to the model: adds `<image>`, sets a missing pad token to the EOS token, and
    removes saved settings that would alter tokens.

    name: the model's name for error messages. Raises TokenizerError if BOS or EOS is missing.
    """
    for token in ("bos_token", "eos_token"):
        if getattr(tokenizer, token) is None:
            raise TokenizerError(f"the tokenizer of {name} has no {token}: set it in its tokenizer_config.json")
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    _make_plain(tokenizer.backend_tokenizer)


def _make_plain(tokenizer: Tokenizer) -> None:
    """Removes settings that a fine-tuned model may have saved with its tokenizer: truncation, padding, BPE dropout."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if getattr(tokenizer.model, "dropout", None):
        tokenizer.model.dropout = None


def load_tokenizer(directory: Path) -> PreparedTokenizer:
    """Loads a tokenizer from the directory that `prepare_tokenizer` returned. Raises DamagedError if its file is not as
    it was written."""
    manifest = read_manifest(directory)
    check(directory, pattern="tokenizer.json")
    return PreparedTokenizer(
        tokenizer=Tokenizer.from_file(str(directory / "tokenizer.json")),
        fingerprint=manifest["fingerprint"],
        image_token_id=manifest["image_token_id"],
        bos_token=manifest["bos_token"],
        eos_token=manifest["eos_token"],
        special_tokens=tuple(manifest["special_tokens"]),
    )
