"""Reads, checks and decodes the images of an evaluation in threads and caches their pixels up to a memory limit."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock

import torch
from PIL import Image

from model.evaluation.interface import Question, QuestionImage
from pipelines.core.errors import ImageRefError
from pipelines.images.decode import decode

CACHE_BYTES = 2 << 30


@dataclass
class ImageCache:
    """An LRU cache of image pixels.

    preprocess: a decoded image → (3, S, S), the model's input. digests: name → SHA-256 of the encoded bytes, for each
    usable image; errors: name → reason and detail, for each unusable image.
    """

    preprocess: Callable[[Image.Image], torch.Tensor]
    threads: int = 4
    digests: dict[str, str] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    _pixels: OrderedDict[str, torch.Tensor] = field(default_factory=OrderedDict)  # by digest, most recently used last
    _num_bytes: int = 0
    _lock: Lock = field(default_factory=Lock)

    def inspect(self, questions: Iterable[Question]) -> None:
        """Reads and decodes every image of the questions once, filling `digests` and `errors`."""
        images = {image.name: image for question in questions for image in question.images}
        with ThreadPoolExecutor(self.threads) as pool:
            list(pool.map(self._inspect, images.values()))

    def _inspect(self, image: QuestionImage) -> None:
        try:
            data = image.read()
            digest = hashlib.sha256(data).hexdigest()
            self._decode(digest, data)
            self.digests[image.name] = digest
        except ImageRefError as error:
            self.errors[image.name] = str(error)

    def pixels(self, images: Iterable[QuestionImage]) -> list[torch.Tensor]:
        """Returns the (3, S, S) tensors of inspected images."""
        with ThreadPoolExecutor(self.threads) as pool:
            return list(pool.map(self._get, images))

    def _get(self, image: QuestionImage) -> torch.Tensor:
        digest = self.digests[image.name]
        with self._lock:
            if digest in self._pixels:
                self._pixels.move_to_end(digest)
                return self._pixels[digest]
        return self._decode(digest, image.read())

    def _decode(self, digest: str, data: bytes) -> torch.Tensor:
        pixels = self.preprocess(decode(data))
        with self._lock:
            if digest not in self._pixels:
                self._pixels[digest] = pixels
                self._num_bytes += pixels.nbytes
            while self._num_bytes > CACHE_BYTES:
                _, oldest = self._pixels.popitem(last=False)
                self._num_bytes -= oldest.nbytes
        return pixels
