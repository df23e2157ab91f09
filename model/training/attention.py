"""Attention of packed sequences, each example by itself: no position is compared with those of other examples.

transformers masks a packed sequence of T positions by a matrix T × T, and attention then computes all of it. Here the
examples are cut apart instead: on a GPU in half precision by torch's variable-length flash attention, else one after
the other. The language model must hand its keyword arguments on to its attention, as those of transformers do.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "packed"  # as transformers knows it: `model.set_attn_implementation(NAME)`


@dataclass(frozen=True)
class Examples:
    """Where the examples of a batch lie, row after row; padding belongs to the last of its row.

    lengths: of each, B × T together. starts: (E + 1,), int32, the positions where they begin, and B × T.
    """

    lengths: tuple[int, ...]
    starts: Tensor

    @classmethod
    def of(cls, position_ids: Tensor, device: torch.device) -> "Examples":
        """position_ids: (B, T), from 0 for each example, best on the CPU, for their values are read."""
        flat = position_ids.flatten()
        starts = [*(flat == 0).nonzero()[:, 0].tolist(), len(flat)]
        lengths = tuple(end - start for start, end in pairwise(starts))
        return cls(lengths, torch.tensor(starts, dtype=torch.int32, device=device))

    def inputs(self) -> dict[str, Any]:
        """What the model's forward takes besides its usual inputs: the examples, and a mask that none is made of."""
        return {"examples": self, "attention_mask": torch.empty(1, 1, 0, 0, device=self.starts.device)}


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    examples: Examples | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query: (B, heads, T, d); key, value: (B, key heads, T, d) → (B, T, heads, d), and no weights.

    Without examples it is SDPA. Raises ValueError for what it does not compute: a softcap, and a window that is
    shorter than an example.
    """
    if examples is None:
        if attention_mask is not None and attention_mask.numel() == 0:
            raise ValueError(f"{type(module).__name__} does not learn where examples end: set train.attention to sdpa")
        more = {"sliding_window": sliding_window, "softcap": softcap, **kwargs}
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **more)
    if softcap is not None:
        raise ValueError("the language model caps its attention scores: set train.attention to sdpa")
    if sliding_window is not None and max(examples.lengths) > sliding_window:
        raise ValueError(
            f"an example of {max(examples.lengths)} positions is longer than the language model's attention window, "
            f"{sliding_window}: set train.attention to sdpa"
        )
    batch, heads, length, width = query.shape
    grouped = key.shape[1] != heads
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and not dropout:
        from torch.nn.attention.varlen import varlen_attn  # loads kernels that a CPU has not

        q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
        starts, longest = examples.starts, max(examples.lengths)
        options: dict[str, Any] = {"scale": scaling, "window_size": (-1, 0), "enable_gqa": grouped}
        read = varlen_attn(q, k, v, starts, starts, longest, longest, **options)
        assert isinstance(read, Tensor)
        return read.view(batch, length, heads, width), None
    of_examples = (x.transpose(0, 1).flatten(1, 2).split(examples.lengths, dim=1) for x in (query, key, value))
    options = {"is_causal": True, "dropout_p": dropout, "scale": scaling, "enable_gqa": grouped}
    read = torch.cat(
        [
            F.scaled_dot_product_attention(q[None], k[None], v[None], **options)[0]
            for q, k, v in zip(*of_examples, strict=True)
        ],
        dim=1,
    )
    return read.transpose(0, 1).reshape(batch, length, heads, width), None


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
