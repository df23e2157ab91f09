"""The choice of the next token, for each row of a batch by its own settings."""

import secrets
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LogitsProcessor


@dataclass(frozen=True)
class Sampling:
    """temperature: 0 takes the likeliest token. top_p: only the likeliest tokens that together have this probability,
    at least one, are drawn from. seed: the same one draws the same answer, whatever else is in the batch."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None


class RowSampler(LogitsProcessor):
    """Draws each row's token itself and leaves no other possible, for a greedy `generate`. For one generation."""

    def __init__(self, rows: list[Sampling]):
        self._rows = rows
        self._random = [torch.Generator().manual_seed(_seed(row)) for row in rows]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        """scores: (B, vocabulary)."""
        drawing = [index for index, row in enumerate(self._rows) if row.temperature > 0]
        if not drawing:
            return scores
        scores = scores.clone()
        for index in drawing:
            token = draw(scores[index], self._rows[index], self._random[index])
            scores[index] = -torch.inf
            scores[index, token] = 0
        return scores


def draw(scores: Tensor, row: Sampling, random: torch.Generator) -> int:
    """scores: (vocabulary,) → a token. Temperature first, then top_p, as OpenAI's and most servers do."""
    scores = scores.double().cpu()
    # The highest score is taken off first, so that a temperature near 0 makes the others -inf, not all of them nan.
    probabilities = ((scores - scores.max()) / row.temperature).softmax(dim=-1)
    if row.top_p < 1:
        ordered, tokens = probabilities.sort(descending=True, stable=True)
        before = ordered.cumsum(dim=-1) - ordered  # what all likelier tokens have together
        probabilities[tokens[(before >= row.top_p) & (before > 0)]] = 0
    reached = probabilities.cumsum(dim=-1)
    place = torch.rand((), generator=random, dtype=torch.float64) * reached[-1]
    token = int(torch.searchsorted(reached, place, right=True))
    return min(token, int(probabilities.nonzero()[-1]))  # rounding may lead past the last one


def _seed(row: Sampling) -> int:
    return secrets.randbits(63) if row.seed is None else row.seed
