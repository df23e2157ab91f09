"""Examples to the tensors of a forward pass: image tokens expanded, padded on the right to the longest."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.training.shards import DataError, Example

IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """What one forward pass of one rank takes, and what is known of it beforehand.

    input_ids, attention_mask, labels: (B, T). pixel_values: (images, 3, S, S), zero images where none has one.
    names, datasets, supervised: of each row its sample's name, the place of its dataset in the collator's list, and
    how many of its tokens the loss counts.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    pixel_values: Tensor
    names: tuple[str, ...]
    datasets: tuple[int, ...]
    supervised: tuple[int, ...]
    num_tokens: int  # not padding
    num_bad: int  # samples whose loss was set to zero since an image did not decode

    def to(self, device: torch.device) -> "Batch":
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        return self._with_tensors(lambda tensor: tensor.pin_memory())

    def _with_tensors(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        changed: dict[str, Any] = {key: change(value) for key, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **changed)


@dataclass(frozen=True)
class Collator:
    """One row per example. max_length: the longest row, visual tokens counted, that the model takes."""

    image_token_id: int
    num_image_tokens: int  # M
    pad_token_id: int
    max_length: int
    datasets: Sequence[str]

    def __call__(self, examples: Sequence[Example], pixel_values: Tensor, bad: Sequence[bool]) -> Batch:
        """examples: B; pixel_values: (images, 3, S, S) in their order; bad: (B,), True for a row without loss.

        Raises DataError, naming the sample, for a row that is too long or has not as many image tokens as images.
        """
        rows = [self._row(example, without_loss) for example, without_loss in zip(examples, bad, strict=True)]
        length = max(len(ids) for ids, _ in rows)
        input_ids = np.full((len(rows), length), self.pad_token_id, dtype=np.int64)
        labels = np.full((len(rows), length), IGNORED, dtype=np.int64)
        mask = np.zeros((len(rows), length), dtype=np.int64)
        for row, (ids, own_labels) in enumerate(rows):
            input_ids[row, : len(ids)] = ids
            labels[row, : len(ids)] = own_labels
            mask[row, : len(ids)] = 1
        return Batch(
            input_ids=torch.from_numpy(input_ids),
            attention_mask=torch.from_numpy(mask),
            labels=torch.from_numpy(labels),
            pixel_values=pixel_values,
            names=tuple(example.name for example in examples),
            datasets=tuple(self.datasets.index(example.dataset) for example in examples),
            # The first token has nothing that it could be foretold from.
            supervised=tuple((labels[:, 1:] != IGNORED).sum(axis=1).tolist()),
            num_tokens=int(mask.sum()),
            num_bad=sum(bad),
        )

    def _row(self, example: Example, without_loss: bool) -> tuple[np.ndarray, np.ndarray]:
        is_image = example.input_ids == self.image_token_id
        if is_image.sum() != len(example.images):
            raise DataError(f"{example.name} has {is_image.sum()} image tokens but {len(example.images)} images")
        if example.dataset not in self.datasets:
            raise DataError(f"{example.name} is of a dataset that the shards' manifest does not name")
        repeats = np.where(is_image, self.num_image_tokens, 1)
        ids = np.repeat(example.input_ids, repeats)
        if len(ids) > self.max_length:
            raise DataError(
                f"{example.name} has {len(ids)} tokens with {self.num_image_tokens} per image, the model takes "
                f"{self.max_length}: lower max_text_tokens and build again"
            )
        counts = np.repeat(example.loss_mask & ~is_image, repeats) & (not without_loss)
        return ids, np.where(counts, ids, IGNORED)
