"""Which samples a rank takes in a step, and a background thread that has them ready in time.

Sample i of the order belongs to step i // global_batch, whatever the number of ranks. Inside a step the samples are
dealt out in contiguous slices: first by rank, then by forward pass. So the whole state of loading is one integer.
"""

import io
import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from model.processing import to_rgb
from model.training.collate import Batch
from model.training.job import Loading
from model.training.shards import Example, Shards

log = logging.getLogger("honeybee.training")

DECODED_TOGETHER = 16  # images that one thread takes at a time


@dataclass(frozen=True)
class Slices:
    """The samples of each forward pass."""

    global_batch: int
    micro_batch: int
    rank: int
    ranks: int

    def of_step(self, step: int) -> list[range]:
        """This rank's samples of a step, one range per forward pass."""
        own = self.global_batch // self.ranks
        first = step * self.global_batch + self.rank * own
        return [range(at, at + self.micro_batch) for at in range(first, first + own, self.micro_batch)]


class Loader:
    """Iterates over steps: each gives this rank's batches of one step. `wait` sums up the seconds waited for data."""

    def __init__(
        self,
        shards: Shards,
        slices: Slices,
        collate: Callable[[Sequence[Example], Tensor, Sequence[bool]], Batch],
        preprocess: Callable[[list[Image.Image]], Tensor],
        loading: Loading,
        pin_memory: bool = False,
    ):
        """preprocess: n images → (n, 3, S, S)."""
        self.shards, self.slices, self.collate, self.preprocess = shards, slices, collate, preprocess
        self.loading, self.pin_memory = loading, pin_memory
        self.wait = 0.0

    def steps(self, start: int, stop: int) -> Iterator[list[Batch]]:
        """The batches of the steps start … stop - 1. Raises what reading raised, DataError above all."""
        ready: queue.Queue[list[Batch] | BaseException] = queue.Queue(self.loading.prefetch_steps)
        closed = threading.Event()

        def put(item: list[Batch] | BaseException) -> None:
            while not closed.is_set():
                try:
                    return ready.put(item, timeout=0.2)
                except queue.Full:
                    continue

        def produce() -> None:
            try:
                # One thread of torch each: the model needs the others.
                with ThreadPoolExecutor(self.loading.decode_threads, "decode", torch.set_num_threads, (1,)) as pool:
                    for step in range(start, stop):
                        if closed.is_set():
                            return
                        put([self._batch(samples, pool) for samples in self.slices.of_step(step)])
            except BaseException as error:  # raised again where the batches are taken
                put(error)

        thread = threading.Thread(target=produce, name="loader", daemon=True)
        thread.start()
        try:
            for _ in range(start, stop):
                begun = time.perf_counter()
                item = ready.get()
                self.wait += time.perf_counter() - begun
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            closed.set()
            thread.join()

    def _batch(self, samples: range, pool: ThreadPoolExecutor) -> Batch:
        examples = list(self.shards.read(samples.start, samples.stop))
        encoded = [image for example in examples for image in example.images]
        chunks = [encoded[at : at + DECODED_TOGETHER] for at in range(0, len(encoded), DECODED_TOGETHER)]
        decoded = list(pool.map(self._decode, chunks)) or [self._decode([])]
        pixel_values = torch.cat([pixels for pixels, _ in decoded])
        problems = iter([problem for _, chunk in decoded for problem in chunk])
        bad = []
        for example in examples:
            own = [problem for problem in itertools.islice(problems, len(example.images)) if problem]
            if own:
                log.warning("%s: an image does not decode (%s); its loss is set to zero", example.name, own[0])
            bad.append(bool(own))
        batch = self.collate(examples, pixel_values, bad)
        return batch.pin_memory() if self.pin_memory else batch

    def _decode(self, encoded: list[bytes]) -> tuple[Tensor, list[str | None]]:
        """Images (n, 3, S, S), and for each what was wrong with it; a bad one is black."""
        images: list[Image.Image] = []
        problems: list[str | None] = []
        for data in encoded:
            try:
                image = Image.open(io.BytesIO(data))
                image.load()
                images.append(to_rgb(image))
                problems.append(None)
            except Exception as error:  # decoders of damaged bytes raise anything
                images.append(Image.new("RGB", (1, 1)))
                problems.append(f"{type(error).__name__}: {error}")
        return self.preprocess(images), problems
