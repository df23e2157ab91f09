"""Runs a sentence-transformers model on batches of fixed shape, in float32 on the CPU and in float16 on a GPU.

Texts are grouped by their number of tokens, and incomplete batches are padded with empty texts, so that the vector of
a text does not depend on the other texts in its batch, on the worker, or on which texts are already embedded.
"""

import importlib.metadata
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np

from pipelines.core.tensors_only import tensors_only
from pipelines.dedup.known_texts import KnownTexts

BATCH_TOKENS = {"cpu": 512, "cuda": 1 << 16}  # tokens in a batch of any shape, by device
# A text is padded to the next of these token counts; most words have three tokens, most contents four to eight.
LENGTHS = (3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 20, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
TEXTS_AT_ONCE = 4096  # bounds memory

Batch = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class EmbedderError(ValueError):
    """Raised for an embedder that cannot be used; the message says what to change in the recipe."""


def check_device(device: str) -> None:
    """Raises EmbedderError if the device is unknown or this machine does not have it."""
    if device not in BATCH_TOKENS:
        raise EmbedderError(f"embedder.device {device!r} is not one of {', '.join(BATCH_TOKENS)}")
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise EmbedderError("embedder.device cuda needs a GPU, and torch finds none on this machine")


def device_facts(device: str) -> dict[str, str]:
    """Returns what the vectors depend on, apart from the model and this file."""
    return {
        "device": device,
        "torch": importlib.metadata.version("torch"),
        "sentence_transformers": importlib.metadata.version("sentence-transformers"),
        "precision": f"{'float16' if device == 'cuda' else 'float32'}, stored as float16",
        "shapes": f"{BATCH_TOKENS[device]} tokens in {','.join(map(str, LENGTHS))}",
    }


class Embedder:
    """A loaded sentence-transformers model."""

    def __init__(self, path: Path, device: str):
        from sentence_transformers import SentenceTransformer  # slow import, needed only if there is a text to embed

        try:
            with tensors_only(path):
                model = SentenceTransformer(str(path), device="cpu", local_files_only=True).eval()
        except Exception as error:  # any library that reads a model file may fail in its own way
            raise EmbedderError(f"the embedder in {path} cannot be loaded: {error}") from error
        dim, limit = model.get_embedding_dimension(), model.max_seq_length
        if dim is None or limit is None:
            raise EmbedderError(f"the embedder in {path} does not define its dimension and its maximum sequence length")
        self.dim, self._limit, self._tokenizer = dim, limit, model.tokenizer
        prompt = model.default_prompt_name
        self._prompt: str = (model.prompts[prompt] or "") if prompt else ""
        if self._tokenizer("cup")["input_ids"] == self._tokenizer("plate")["input_ids"]:
            raise EmbedderError(
                f"the embedder in {path} gives different words the same tokens: is its tokenizer's vocabulary missing?"
            )
        self._texts = KnownTexts(self._tokenizer, limit)
        self.scripts = self._texts.scripts
        self._path, self._device = path, device
        self._model = model.half().to("cuda") if device == "cuda" else model

    def embed(self, texts: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yields (indices into `texts` (n,), their L2-normalised vectors (n, dim) float16, whether each text is known
        (n,) bool; pipelines/dedup/known_texts.py) until all are embedded."""
        import torch

        before = torch.get_num_threads()
        workers = 1 if self._device == "cuda" else before
        waiting: deque[tuple[np.ndarray, np.ndarray, Future[np.ndarray]]] = deque()
        # Several batches run at once, each on one thread: the bytes do not depend on the number of cores, and threads
        # do not synchronise at every step (under other load, ten times as fast as one batch on all cores).
        pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
        try:
            for indices, known, ids, mask in self._batches(texts):
                waiting.append((indices, known, pool.submit(self._run, ids, mask)))
                if len(waiting) > 2 * workers:
                    yield self._finished(*waiting.popleft())
            while waiting:
                yield self._finished(*waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(before)

    def _run(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Returns the normalised vectors (rows, dim) float16; ids and mask are (rows, length) int64."""
        import torch

        with torch.inference_mode():
            features = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
            if self._device == "cuda":
                features = {name: values.to("cuda") for name, values in features.items()}
            embedded = self._model(features)["sentence_embedding"].float()
            return torch.nn.functional.normalize(embedded).cpu().numpy().astype(np.float16)

    def _batches(self, texts: Sequence[str]) -> Iterator[Batch]:
        """Yields (indices into `texts`, whether they are known, input ids, attention mask); the last two are (rows,
        length) int64."""
        lengths = [*(length for length in LENGTHS if length < self._limit), self._limit]
        waiting: dict[int, list[tuple[int, bool, list[int]]]] = {length: [] for length in lengths}
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            chosen = [self._prompt + text for text in texts[start : start + TEXTS_AT_ONCE]]
            for index, (tokens, known) in enumerate(zip(*self._texts.encode(chosen), strict=True), start):
                length = next(length for length in lengths if len(tokens) <= length)
                waiting[length].append((index, known, tokens))
                if len(waiting[length]) == self._rows(length):
                    yield self._batch(length, waiting[length])
                    waiting[length] = []
        for length in lengths:
            if waiting[length]:
                yield self._batch(length, waiting[length])

    def _batch(self, length: int, members: list[tuple[int, bool, list[int]]]) -> Batch:
        shape = (self._rows(length), length)
        ids, mask = np.full(shape, self._tokenizer.pad_token_id, np.int64), np.zeros(shape, np.int64)
        mask[:, 0] = 1  # avoids a division by zero in rows without a text
        for row, (_, _, tokens) in enumerate(members):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        return np.array([index for index, _, _ in members]), np.array([known for _, known, _ in members]), ids, mask

    def _finished(
        self, indices: np.ndarray, known: np.ndarray, vectors: "Future[np.ndarray]"
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        found = vectors.result()[: len(indices)]
        if not (np.linalg.norm(found.astype(np.float32), axis=1) > 0.5).all():  # neither 0 nor nan
            raise EmbedderError(f"the embedder in {self._path} produces zero or NaN vectors: its weights are damaged")
        return indices, found, known

    def _rows(self, length: int) -> int:
        return max(1, BATCH_TOKENS[self._device] // length)


@lru_cache(maxsize=1)
def load(path: Path, digest: str, device: str) -> Embedder:
    """Returns the loaded model, cached. digest: of the model's files, so that changed files are loaded again."""
    return Embedder(path, device)
