"""Turns packs of examples into the tensors of a forward pass: expands image tokens and pads rows on the right."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.training.data.shard_reader import UNREADABLE, DataError, Example

IGNORE_INDEX = -100


@dataclass(frozen=True)
class Batch:
    """The inputs of one forward pass of one rank, with facts about its examples.

    input_ids, labels: (B, T), one pack per row. position_ids: (B, T), restarting at 0 for each example, which tells
    attention where an example ends; padding continues the count of the last example, whose tokens never attend to it.
    example_ids: (B, T), the index of the example in the batch; padding has that of the last example in its row.
    pixel_values: (images, 3, S, S), where the number of images may be 0. names, datasets, supervised: per example, the
    name of its sample, the index of its dataset in the collator's list (-1 if it could not be read), and the number of
    its supervised tokens.
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    example_ids: Tensor
    pixel_values: Tensor
    names: tuple[str, ...]
    datasets: tuple[int, ...]
    supervised: tuple[int, ...]
    lengths: tuple[int, ...]  # tokens per example, including visual tokens, without padding
    num_bad: int  # samples without loss because they could not be read

    @property
    def num_tokens(self) -> int:
        return sum(self.lengths)

    def to(self, device: torch.device) -> "Batch":
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        return self._with_tensors(lambda tensor: tensor.pin_memory())

    def _with_tensors(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        changed: dict[str, Any] = {key: change(value) for key, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **changed)


@dataclass(frozen=True)
class Collator:
    """Makes a Batch from packs. max_length: the longest example that the model accepts, including visual tokens.
    pin_memory: put batches in page-locked memory, which a GPU copies from faster."""

    image_token_id: int
    num_image_tokens: int  # M
    pad_token_id: int
    max_length: int
    datasets: Sequence[str]
    pin_memory: bool = False

    def __call__(self, packs: Sequence[Sequence[Example]], pixel_values: Tensor, bad: Sequence[bool]) -> Batch:
        """packs: B packs; pixel_values: (images, 3, S, S) in the order of the examples; bad: per example, True for no
        loss.

        Raises DataError, naming the sample, if one is too long or its numbers of image tokens and images differ.
        """
        examples = [example for pack in packs for example in pack]
        made = [self._example(example, without_loss) for example, without_loss in zip(examples, bad, strict=True)]
        rows, at = [], 0
        for pack in packs:
            rows.append(range(at, at + len(pack)))
            at += len(pack)
        length = max(sum(len(made[i][0]) for i in row) for row in rows)
        shape = (len(rows), length)
        input_ids = np.full(shape, self.pad_token_id, dtype=np.int64)
        labels = np.full(shape, IGNORE_INDEX, dtype=np.int64)
        position_ids, example_ids = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        for row, members in enumerate(rows):
            at = 0
            for i in members:
                ids, own_labels = made[i]
                end = at + len(ids)
                input_ids[row, at:end], labels[row, at:end] = ids, own_labels
                position_ids[row, at:] = np.arange(length - at)
                example_ids[row, at:] = i
                at = end
        batch = Batch(
            input_ids=torch.from_numpy(input_ids),
            labels=torch.from_numpy(labels),
            position_ids=torch.from_numpy(position_ids),
            example_ids=torch.from_numpy(example_ids),
            pixel_values=pixel_values,
            names=tuple(example.name for example in examples),
            datasets=tuple(-1 if e.dataset == UNREADABLE else self.datasets.index(e.dataset) for e in examples),
            supervised=tuple(int((own != IGNORE_INDEX).sum()) for _, own in made),
            lengths=tuple(len(ids) for ids, _ in made),
            num_bad=sum(bad),
        )
        return batch.pin_memory() if self.pin_memory else batch

    def _example(self, example: Example, without_loss: bool) -> tuple[np.ndarray, np.ndarray]:
        """Returns its token ids, with M image tokens per image, and its labels: (T,), (T,)."""
        is_image = example.input_ids == self.image_token_id
        if is_image.sum() != len(example.images):
            raise DataError(f"{example.name} has {is_image.sum()} image tokens but {len(example.images)} images")
        if example.dataset not in self.datasets and example.dataset != UNREADABLE:
            raise DataError(f"{example.name} belongs to a dataset that is not in the manifest of the shards")
        repeats = np.where(is_image, self.num_image_tokens, 1)
        ids = np.repeat(example.input_ids, repeats)
        if len(ids) > self.max_length:
            raise DataError(
                f"{example.name} has {len(ids)} tokens with {self.num_image_tokens} per image, but the model accepts "
                f"only {self.max_length}: lower max_text_tokens and rebuild the shards"
            )
        counts = np.repeat(example.loss_mask & ~is_image, repeats) & (not without_loss)
        counts[:1] = False  # nothing precedes the first token, so it cannot be predicted
        return ids, np.where(counts, ids, IGNORE_INDEX)
