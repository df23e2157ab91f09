"""A sentence-transformers model that turns texts into vectors, in batches of fixed shape: on the CPU in float32, on a
GPU in half precision.

Texts are grouped by their number of tokens, and short batches are filled up with empty texts, so that neither the
neighbours of a text, nor the worker, nor what is embedded already, can change its vector.
"""

import importlib.metadata
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np

BATCH_TOKENS = {"cpu": 512, "cuda": 1 << 16}  # tokens in a batch of any shape, by device
# A text is padded to the next of these many tokens; most words have three, most contents four to eight.
LENGTHS = (3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 20, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
TEXTS_AT_ONCE = 4096  # bounds memory

log = logging.getLogger(__name__)
Batch = tuple[np.ndarray, np.ndarray, np.ndarray]


class EmbedderError(ValueError):
    """An embedder that cannot be used; the message says what to change in the recipe."""


def check_device(device: str) -> None:
    """Raises EmbedderError, before any work, for one that this machine does not have."""
    if device not in BATCH_TOKENS:
        raise EmbedderError(f"embedder.device {device!r} is none of {', '.join(BATCH_TOKENS)}")
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise EmbedderError("embedder.device cuda needs a GPU, and torch finds none on this machine")


def device_facts(device: str) -> dict[str, str]:
    """What the vectors depend on besides the model and this file."""
    return {
        "device": device,
        "torch": importlib.metadata.version("torch"),
        "sentence_transformers": importlib.metadata.version("sentence-transformers"),
        "precision": f"{'float16' if device == 'cuda' else 'float32'}, stored as float16",
        "shapes": f"{BATCH_TOKENS[device]} tokens in {','.join(map(str, LENGTHS))}",
    }


class Embedder:
    """A loaded model."""

    def __init__(self, path: Path, device: str):
        from sentence_transformers import SentenceTransformer  # takes seconds: only when something must be embedded

        try:
            model = SentenceTransformer(str(path), device="cpu", local_files_only=True).eval()
        except Exception as error:  # of any library that reads one of its files
            raise EmbedderError(f"the embedder in {path} cannot be loaded: {error}") from error
        dim, limit = model.get_embedding_dimension(), model.max_seq_length
        if dim is None or limit is None:
            raise EmbedderError(f"the embedder in {path} does not say its dimension and its maximal length")
        self.dim, self._limit, self._tokenizer = dim, limit, model.tokenizer
        prompt = model.default_prompt_name
        self._prompt: str = (model.prompts[prompt] or "") if prompt else ""
        if self._tokenizer("cup")["input_ids"] == self._tokenizer("plate")["input_ids"]:
            raise EmbedderError(f"the embedder in {path} tells no words apart: is its tokenizer's vocabulary there?")
        self._path, self._device = path, device
        self._model = model.half().to("cuda") if device == "cuda" else model

    def embed(self, texts: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields (places in `texts`, (number of them, dim) float16, normalised), until every text had its turn."""
        import torch

        before = torch.get_num_threads()
        workers = 1 if self._device == "cuda" else before
        waiting: deque[tuple[np.ndarray, Future[np.ndarray]]] = deque()
        # Several batches at once, each on one thread: the same bytes on any number of cores, and no threads that wait
        # for each other at every step (with other load beside it, ten times as fast as a batch on all cores).
        pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
        try:
            for places, ids, mask in self._batches(texts):
                waiting.append((places, pool.submit(self._run, ids, mask)))
                if len(waiting) > 2 * workers:
                    yield self._finished(*waiting.popleft())
            while waiting:
                yield self._finished(*waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(before)

    def _run(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """(rows, length) int64 each → (rows, dim) float16."""
        import torch

        with torch.inference_mode():
            features = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
            if self._device == "cuda":
                features = {name: values.to("cuda") for name, values in features.items()}
            embedded = self._model(features)["sentence_embedding"].float()
            return torch.nn.functional.normalize(embedded).cpu().numpy().astype(np.float16)

    def _batches(self, texts: Sequence[str]) -> Iterator[Batch]:
        """Yields (places in `texts`, input ids, attention mask): the two are (rows, length) int64."""
        lengths = [*(length for length in LENGTHS if length < self._limit), self._limit]
        waiting: dict[int, list[tuple[int, list[int]]]] = {length: [] for length in lengths}
        at_limit = 0
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            chosen = [self._prompt + text for text in texts[start : start + TEXTS_AT_ONCE]]
            encoded = self._tokenizer(chosen, truncation=True, max_length=self._limit)
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

    def _batch(self, length: int, members: list[tuple[int, list[int]]]) -> Batch:
        shape = (self._rows(length), length)
        ids, mask = np.full(shape, self._tokenizer.pad_token_id, np.int64), np.zeros(shape, np.int64)
        mask[:, 0] = 1  # rows without a text would divide by zero
        for row, (_, tokens) in enumerate(members):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        return np.array([place for place, _ in members]), ids, mask

    def _finished(self, places: np.ndarray, vectors: "Future[np.ndarray]") -> tuple[np.ndarray, np.ndarray]:
        found = vectors.result()[: len(places)]
        if not (np.linalg.norm(found.astype(np.float32), axis=1) > 0.5).all():  # neither 0 nor nan
            raise EmbedderError(
                f"the embedder in {self._path} gives vectors without a direction: its weights are damaged"
            )
        return places, found

    def _rows(self, length: int) -> int:
        return max(1, BATCH_TOKENS[self._device] // length)


@lru_cache(maxsize=1)
def load(path: Path, digest: str, device: str) -> Embedder:
    """digest: of the model's files, so that files that changed under a running process are loaded again."""
    return Embedder(path, device)
