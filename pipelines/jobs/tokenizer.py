"""store/tokenizers/: a language model's tokenizer with the image token added.

Raise VERSION when a change here changes the files that are written.
"""

from pathlib import Path

from pipelines.core.files import named_digests
from pipelines.core.store import FileDigests, Store
from pipelines.schema import IMAGE_TOKEN
from pipelines.tokens.plain_text import control_tokens
from pipelines.tokens.tokenizer import _load

VERSION = 3


def prepare_tokenizer(store: Store, llm: str, local_files_only: bool = False) -> Path:
    """Returns the store directory of the tokenizer of `llm` (a directory or hub name) with the image token added.

    A missing pad token is set to the EOS token (padding is never supervised). local_files_only: do not query the hub.
    Raises TokenizerError if BOS or EOS is missing or the files cannot be parsed, and OSError if the model is not found.
    """
    local = Path(llm)
    digests = FileDigests(store)
    files = named_digests(local, filter(Path.is_file, local.glob("*token*")), digests.digest) if local.is_dir() else {}
    key = {"version": VERSION, "llm": [list(named) for named in files.items()] or llm}

    def make(out: Path) -> dict:
        tokenizer = _load(llm, local_files_only)
        tokenizer.save_pretrained(out)
        specials = sorted(control_tokens(tokenizer.backend_tokenizer))
        digest = store.known.digest(out / "tokenizer.json")[:16]
        return {
            "fingerprint": digest,
            "image_token_id": tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
            "bos_token": tokenizer.bos_token,
            "eos_token": tokenizer.eos_token,
            "special_tokens": specials,
        }

    return store.produce("tokenizers", key, make)
