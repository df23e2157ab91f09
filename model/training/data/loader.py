"""Prefetches a rank's batches of each step: background threads read and decode them ahead of time.

A step consists of `global_batch` packs of the plan, so the full state of loading is one integer, the index of the next
pack, which is independent of the number of ranks and threads.
"""

import itertools
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from model.training.data.collate import Batch, Collator
from model.training.data.rank_assignment import PackAssignment
from model.training.data.shard_reader import DataError, EmbeddedImage, ImageFile, Shards
from model.training.settings import Loading
from pipelines.packing.plan import Pack, PackingPlan

log = logging.getLogger("honeybee.training")

IMAGES_PER_TASK = 8  # images per decoding task

# Encoded images → pixels (n, 3, S, S), and for each its problem or None; an image with a problem is black.
Decode = Callable[[list[bytes]], tuple[Tensor, list[str | None]]]


class Loader:
    """Iterates over steps, yielding this rank's batches of a step, one per forward pass, until fewer packs than a
    global batch are left. `wait` accumulates the seconds spent waiting for data."""

    def __init__(
        self,
        shards: Shards,
        plan: PackingPlan,
        deal: PackAssignment,
        collate: Collator,
        decode: Decode,
        loading: Loading,
    ):
        self.shards, self.plan, self.deal = shards, plan, deal
        self.collate, self.decode, self.loading = collate, decode, loading
        self.next_pack = 0
        self.wait = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Returns the state after the last step that was taken from the iterator."""
        return {"next_pack": self.next_pack, "plan": self.plan.fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resumes from `state`. Raises DataError if it belongs to a different plan."""
        if state["plan"] != self.plan.fingerprint:
            raise DataError(
                f"the state is at pack {state['next_pack']} of plan {state['plan']}, but these shards, packing and M "
                f"give plan {self.plan.fingerprint}: the order of samples would not continue where it stopped"
            )
        self.next_pack = state["next_pack"]

    def __iter__(self) -> Generator[list[Batch]]:
        """Raises the errors of reading, in particular DataError."""
        size = self.deal.global_batch
        firsts = range(self.next_pack, self.plan.num_packs - size + 1, size)
        ready: queue.Queue[list[Batch] | BaseException] = queue.Queue(self.loading.prefetch_steps)
        closed = threading.Event()
        thread = threading.Thread(target=self._produce, args=(firsts, ready, closed), name="loader", daemon=True)
        thread.start()
        try:
            for first in firsts:
                started = time.perf_counter()
                item = _get(ready, thread)
                self.wait += time.perf_counter() - started
                if isinstance(item, BaseException):
                    raise item
                self.next_pack = first + size
                yield item
        finally:
            closed.set()
            thread.join()

    def _produce(self, firsts: range, ready: queue.Queue, closed: threading.Event) -> None:
        def put(item: list[Batch] | BaseException) -> None:
            while not closed.is_set():
                try:
                    return ready.put(item, timeout=0.2)
                except queue.Full:
                    continue

        try:
            # One torch thread per worker, to leave the other cores to the model.
            with ThreadPoolExecutor(self.loading.decode_threads, "decode", torch.set_num_threads, (1,)) as pool:
                started: deque[list[_Pass]] = deque()
                for first in firsts:
                    if closed.is_set():
                        return
                    packs = self.plan.packs(first, first + self.deal.global_batch)
                    oldest = min(pack.window for pack in packs)
                    started.append([_Pass(self, pool, own, oldest) for own in self.deal.own(packs)])
                    # While a step is collated the threads decode the next one; the first step is not delayed by this.
                    if len(started) > 1 or first == firsts[0]:
                        put([each.batch() for each in started.popleft()])
                while started and not closed.is_set():
                    put([each.batch() for each in started.popleft()])
        except BaseException as error:  # re-raised by the consumer, in __iter__
            put(error)


class _Pass:
    """A forward pass whose samples have been read and whose images are being decoded. oldest: no sample with a lower
    index will be read again."""

    def __init__(self, loader: Loader, pool: ThreadPoolExecutor, packs: list[Pack], oldest: int):
        self.loader = loader
        samples = sorted(itertools.chain.from_iterable(pack.samples.tolist() for pack in packs))
        found = dict(zip(samples, loader.shards.read(samples, oldest), strict=True))
        self.packs = [[found[i] for i in pack.samples.tolist()] for pack in packs]
        images = [image for pack in self.packs for example in pack for image in example.images]
        self.decoded: list[Future] = [
            pool.submit(self._decode, images[at : at + IMAGES_PER_TASK])
            for at in range(0, max(len(images), 1), IMAGES_PER_TASK)
        ]

    def batch(self) -> Batch:
        """Waits for the images and returns the collated batch."""
        decoded = [future.result() for future in self.decoded]
        problems = iter([problem for _, chunk in decoded for problem in chunk])
        bad = []
        for example in itertools.chain.from_iterable(self.packs):
            own = [problem for problem in itertools.islice(problems, len(example.images)) if problem]
            problem = example.problem or (own[0] if own else None)
            if problem:
                log.warning("%s cannot be used (%s); its loss is set to zero", example.name, problem)
            bad.append(problem is not None)
        return self.loader.collate(self.packs, torch.cat([pixels for pixels, _ in decoded]), bad)

    def _decode(self, images: list[EmbeddedImage | ImageFile]) -> tuple[Tensor, list[str | None]]:
        encoded: list[bytes] = []
        unread: dict[int, str] = {}
        for index, image in enumerate(images):
            try:
                encoded.append(image.read())
            except (OSError, ValueError) as error:
                unread[index] = str(error)
                encoded.append(b"")
        pixels, problems = self.loader.decode(encoded)
        return pixels, [unread.get(index, problem) for index, problem in enumerate(problems)]


def _get(ready: queue.Queue, thread: threading.Thread) -> list[Batch] | BaseException:
    """Returns the next item, or an error if the thread has ended without leaving one."""
    while True:
        try:
            return ready.get(timeout=1.0)
        except queue.Empty:
            if not thread.is_alive() and ready.empty():
                return RuntimeError("the loader thread ended without a result or an error")
