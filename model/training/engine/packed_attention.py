"""Attention for packed sequences that computes each example separately, so no position attends to another example.

transformers masks a packed sequence of T positions with a T × T matrix, all of which attention then computes. This
implementation splits the examples instead: on a GPU in half precision with torch's variable-length flash attention,
otherwise one example after another. The language model must pass its keyword arguments through to its attention
function, as the models of transformers do.
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

NAME = "packed"  # registered with transformers: `model.set_attn_implementation(NAME)`


@dataclass(frozen=True)
class Examples:
    """Boundaries of the examples in a flattened batch; padding belongs to the last example of its row.

    lengths: the length of each example; they add up to B × T. starts: (E + 1,), int32, the start position of each
    example, followed by B × T.
    """

    lengths: tuple[int, ...]
    starts: Tensor

    @classmethod
    def of(cls, position_ids: Tensor, device: torch.device) -> "Examples":
        """Derives the boundaries from position_ids, (B, T), which restart at 0 for each example.

        position_ids are best on the CPU, since their values are read.
        """
        flat = position_ids.flatten()
        starts = [*(flat == 0).nonzero()[:, 0].tolist(), len(flat)]
        lengths = tuple(end - start for start, end in pairwise(starts))
        return cls(lengths, torch.tensor(starts, dtype=torch.int32, device=device))

    def inputs(self) -> dict[str, Any]:
        """Returns the extra arguments of the model's forward: the examples, and an empty mask so that none is built."""
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
    """Computes causal attention within each example; falls back to SDPA if `examples` is None.

    The parameters are those of an attention function of transformers (AttentionInterface), and `examples`.
    query: (B, heads, T, d); key, value: (B, key heads, T, d). Returns (B, T, heads, d) and None for the weights.
    Raises ValueError for unsupported settings: a softcap, or a sliding window shorter than an example.
    """
    if examples is None:
        if attention_mask is not None and attention_mask.numel() == 0:
            raise ValueError(f"{type(module).__name__} does not receive `examples`: set train.attention to sdpa")
        more = {"sliding_window": sliding_window, "softcap": softcap, **kwargs}
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **more)
    if softcap is not None:
        raise ValueError("the language model soft-caps its attention scores: set train.attention to sdpa")
    if sliding_window is not None and max(examples.lengths) > sliding_window:
        raise ValueError(
            f"an example of {max(examples.lengths)} positions is longer than the language model's attention window, "
            f"{sliding_window}: set train.attention to sdpa"
        )
    batch, heads, length, width = query.shape
    grouped = key.shape[1] != heads
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and not dropout:
        from torch.nn.attention.varlen import varlen_attn  # loads kernels that exist only on GPUs

        q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
        starts, longest = examples.starts, max(examples.lengths)
        options: dict[str, Any] = {"scale": scaling, "window_size": (-1, 0), "enable_gqa": grouped}
        output = varlen_attn(q, k, v, starts, starts, longest, longest, **options)
        assert isinstance(output, Tensor)
        return output.view(batch, length, heads, width), None
    per_example = (x.transpose(0, 1).flatten(1, 2).split(examples.lengths, dim=1) for x in (query, key, value))
    options = {"is_causal": True, "dropout_p": dropout, "scale": scaling, "enable_gqa": grouped}
    output = torch.cat(
        [
            F.scaled_dot_product_attention(q[None], k[None], v[None], **options)[0]
            for q, k, v in zip(*per_example, strict=True)
        ],
        dim=1,
    )
    return output.transpose(0, 1).reshape(batch, length, heads, width), None


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
