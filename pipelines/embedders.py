"""Models that turn texts into vectors, in batches of fixed shape: `torch` on the CPU in float32 is the reference;
`openvino` runs the same graph on the CPU; `cuda` is torch on a GPU in half precision.

Texts are grouped by their number of tokens, and short batches are filled up with empty texts, so that neither the
neighbours of a text, nor the worker, nor what is embedded already, can change its vector.
"""

import importlib.metadata
import importlib.util
import logging
import os
import sys
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

BACKENDS = ("torch", "openvino", "cuda")
BATCH_TOKENS = {"torch": 512, "openvino": 512, "cuda": 1 << 16}  # tokens in a batch of any shape
# A text is padded to the next of these many tokens; most words have three, most contents four to eight.
LENGTHS = (3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 20, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
TEXTS_AT_ONCE = 4096  # bounds memory

log = logging.getLogger(__name__)
Batch = tuple[np.ndarray, np.ndarray, np.ndarray]


class EmbedderError(ValueError):
    """An embedder that cannot be used; the message says what to change in the recipe."""


def check_backend(backend: str) -> None:
    """Raises EmbedderError, before any work, for one that this machine cannot run."""
    if backend not in BACKENDS:
        raise EmbedderError(f"embedder.backend {backend!r} is none of {', '.join(BACKENDS)}")
    if backend == "openvino" and importlib.util.find_spec("openvino") is None:
        raise EmbedderError("embedder.backend openvino is not installed: pip install 'honeybee-mllm[openvino]'")
    if backend == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise EmbedderError("embedder.backend cuda needs a GPU, and torch finds none on this machine")


def backend_facts(backend: str) -> dict[str, str]:
    """What the vectors depend on besides the model and this file: never what happens to be installed besides."""
    check_backend(backend)
    libraries = ["torch", "sentence-transformers", *(["openvino"] if backend == "openvino" else [])]
    return {
        "backend": backend,
        **{name.replace("-", "_"): importlib.metadata.version(name) for name in libraries},
        "precision": f"{'float16' if backend == 'cuda' else 'float32'}, stored as float16",
        "shapes": f"{BATCH_TOKENS[backend]} tokens in {','.join(map(str, LENGTHS))}",
    }


class TorchEmbedder:
    """A sentence-transformers model on the CPU, in float32."""

    backend = "torch"
    _workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def __init__(self, path: Path):
        from sentence_transformers import SentenceTransformer  # takes seconds: only when something must be embedded

        try:
            model = SentenceTransformer(str(path), device="cpu", local_files_only=True).eval()
        except (OSError, ValueError, KeyError) as error:
            raise EmbedderError(f"the embedder in {path} cannot be loaded: {error}") from error
        dim, limit = model.get_embedding_dimension(), model.max_seq_length
        if dim is None or limit is None:
            raise EmbedderError(f"the embedder in {path} does not say its dimension and its maximal length")
        self.dim, self._limit, self._tokenizer = dim, limit, model.tokenizer
        prompt = model.default_prompt_name
        self._prompt: str = (model.prompts[prompt] or "") if prompt else ""
        self._model = self._prepared(model)

    def embed(self, texts: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields (places in `texts`, (number of them, dim) float16, normalised), until every text had its turn."""
        import torch

        before = torch.get_num_threads()
        waiting: deque[tuple[np.ndarray, Future[np.ndarray]]] = deque()
        # Every batch on one thread, one for each core: whatever the number of cores, and without threads that wait for
        # each other at every step.
        pool = ThreadPoolExecutor(self._workers, initializer=torch.set_num_threads, initargs=(1,))
        try:
            for places, ids, mask in self._batches(texts):
                waiting.append((places, pool.submit(self._run, ids, mask)))
                if len(waiting) > 2 * self._workers:
                    yield _finished(*waiting.popleft())
            while waiting:
                yield _finished(*waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(before)

    def _prepared(self, model: Any) -> Any:
        return model

    def _run(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """(rows, length) int64 each → (rows, dim)."""
        import torch

        with torch.inference_mode():
            return _sentence_vectors(self._model, torch.from_numpy(ids), torch.from_numpy(mask)).numpy()

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

    def _rows(self, length: int) -> int:
        return max(1, BATCH_TOKENS[self.backend] // length)


class CudaEmbedder(TorchEmbedder):
    """The same on a GPU, in half precision."""

    backend = "cuda"
    _workers = 1

    def _prepared(self, model: Any) -> Any:
        return model.half().to("cuda")

    def _run(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        import torch

        with torch.inference_mode():
            on_gpu = (torch.from_numpy(array).to("cuda") for array in (ids, mask))
            return _sentence_vectors(self._model, *on_gpu).float().cpu().numpy()


class OpenVinoEmbedder(TorchEmbedder):
    """The same graph run by OpenVINO on the CPU, in float32."""

    backend = "openvino"

    def _prepared(self, model: Any) -> Any:
        import torch

        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type] # else its import would send statistics
        import openvino
        from openvino import properties
        from openvino.properties import hint

        class Graph(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = model

            def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
                return _sentence_vectors(self.model, input_ids, attention_mask)

        example = torch.ones((2, 4), dtype=torch.long)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # tracing warns of branches on shapes
            graph = openvino.convert_model(
                Graph().eval(), example_input={"input_ids": example, "attention_mask": example}
            )
        options = {
            hint.inference_precision(): openvino.Type.f32,  # else bfloat16 where the processor has it
            properties.num_streams(): self._workers,
            properties.inference_num_threads(): self._workers,  # one for each stream
        }
        return openvino.Core().compile_model(graph, "CPU", options)

    def _run(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return self._model.create_infer_request().infer([ids, mask])[0]


def _finished(places: np.ndarray, vectors: "Future[np.ndarray]") -> tuple[np.ndarray, np.ndarray]:
    return places, vectors.result()[: len(places)].astype(np.float16)


def _sentence_vectors(model: Any, ids: "torch.Tensor", mask: "torch.Tensor") -> "torch.Tensor":
    import torch

    embedded = model({"input_ids": ids, "attention_mask": mask})["sentence_embedding"]
    return torch.nn.functional.normalize(embedded)


@lru_cache(maxsize=1)
def load(path: Path, digest: str, backend: str) -> TorchEmbedder:
    """digest: of the model's files, so that files that changed under a running process are loaded again."""
    kinds = {kind.backend: kind for kind in (TorchEmbedder, OpenVinoEmbedder, CudaEmbedder)}
    return kinds[backend](path)
