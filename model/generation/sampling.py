"""Samples the next token of each row in a batch with per-row settings."""

import secrets
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LogitsProcessor


@dataclass(frozen=True)
class Sampling:
    """Sampling settings of one row. temperature: 0 means greedy. top_p: nucleus sampling, which always keeps at least
    one token. seed: makes the answer reproducible, independently of the other rows in the batch."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None


class PerRowSampler(LogitsProcessor):
    """Samples each row's token and masks all others, for a greedy `generate`. Each call needs its own instance.

    errors: row → why no token can be sampled; the other rows are not affected.
    """

    def __init__(self, rows: list[Sampling]):
        self._rows = rows
        self.errors: dict[int, Exception] = {}
        self._random = [torch.Generator().manual_seed(_seed(row)) for row in rows]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        """scores: (B, vocabulary) → the same shape."""
        for index in scores.isnan().any(dim=-1).nonzero()[:, 0].tolist():
            self.errors[index] = ValueError("the model's scores are not numbers")
        drawing = [index for index, row in enumerate(self._rows) if row.temperature > 0 and index not in self.errors]
        if not drawing:
            return scores
        scores = scores.clone()
        for index in drawing:
            token = sample_token(scores[index], self._rows[index], self._random[index])
            scores[index] = -torch.inf
            scores[index, token] = 0
        return scores


def sample_token(scores: Tensor, row: Sampling, random: torch.Generator) -> int:
    """Samples a token from scores (vocabulary,). Applies temperature before top_p, as most servers do."""
    scores = scores.double().cpu()
    # Subtract the highest score first, so that a temperature near 0 turns the others into -inf instead of all into nan.
    probabilities = ((scores - scores.max()) / row.temperature).softmax(dim=-1)
    if row.top_p < 1:
        ordered, tokens = probabilities.sort(descending=True, stable=True)
        before = ordered.cumsum(dim=-1) - ordered  # total probability of all likelier tokens
        probabilities[tokens[(before >= row.top_p) & (before > 0)]] = 0
    cumulative = probabilities.cumsum(dim=-1)
    point = torch.rand((), generator=random, dtype=torch.float64) * cumulative[-1]
    token = int(torch.searchsorted(cumulative, point, right=True))
    return min(token, int(probabilities.nonzero()[-1]))  # rounding can lead past the last possible token


def _seed(row: Sampling) -> int:
    return secrets.randbits(63) if row.seed is None else row.seed
