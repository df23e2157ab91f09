"""Measures the memory that a model's forward and backward pass take beyond its weights, by running them without data.

Tensors on PyTorch's meta device have shapes but no memory. The model that a stage trains, of any size, therefore runs
forward and backward in a second, with the code that will train it, while the sizes of all live tensors (outputs of
operations and tensors that autograd saves for the backward pass) are added up.
"""

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.training.engine.packed_attention import NAME as PACKED
from model.training.engine.packed_attention import Examples


@dataclass(frozen=True)
class Shape:
    """The shape of a forward pass: B rows of T positions, and over all rows the images and positions with logits."""

    rows: int
    positions: int
    images: int
    supervised: int
    masked: bool = False  # rows hold several examples, separated by a T × T mask


@dataclass(frozen=True)
class Peak:
    """Peak memory in bytes. handed_on: if each parameter's gradient is released as soon as it is complete. growing: if
    gradients are retained, so that they grow while activations shrink."""

    handed_on: int
    growing: int


def peak(model: Any, shape: Shape, attention: str = "sdpa") -> Peak:
    """Returns the peak of one forward and backward pass, with the loss of model/training/stage.py.

    model: a HoneybeeForConditionalGeneration on the meta device, in training mode, in the precision of the training,
    with the untrained parts frozen.
    """
    model.vision.set_attn_implementation("sdpa")  # the default of loaded models, but not of newly constructed ones
    model.llm.set_attn_implementation(attention)
    return Peak(_run(model, shape, attention, False), _run(model, shape, attention, True))


def _run(model: Any, shape: Shape, attention: str, keep: bool) -> int:
    parameters = [p for p in model.parameters() if p.requires_grad]
    hooks = [] if keep else [p.register_post_accumulate_grad_hook(_drop) for p in parameters]
    with Live([*model.parameters(), *model.buffers()]) as live, _fused():
        _losses(model, shape, attention).sum().backward()
    for hook in hooks:
        hook.remove()
    for parameter in parameters:
        parameter.grad = None
    return live.peak


def _drop(parameter: Tensor) -> None:
    parameter.grad = None


def _losses(model: Any, shape: Shape, attention: str) -> Tensor:
    """Like Loop._losses and the model's forward, without their checks, which need values."""
    meta = torch.device("meta")
    size = (shape.rows, shape.positions)
    image_size = model.config.vision_config.image_size
    embeddings = model.get_input_embeddings()(torch.zeros(size, dtype=torch.long, device=meta))
    tokens = model.get_image_features(torch.zeros(max(shape.images, 1), 3, image_size, image_size, device=meta))
    is_image = torch.zeros(size, dtype=torch.bool, device=meta).unsqueeze(-1)
    embeddings = embeddings.masked_scatter(is_image, tokens.to(embeddings.dtype))
    more: dict[str, Any] = {}
    if attention == PACKED:
        lengths = (shape.positions,) * shape.rows
        more = Examples(lengths, torch.zeros(shape.rows + 1, dtype=torch.int32, device=meta)).inputs()
    elif shape.masked:
        more["attention_mask"] = torch.zeros(shape.rows, 1, *size[1:], size[1], dtype=torch.bool, device=meta)
    else:  # an empty mask, recognised by _attention, prevents building one, which would need values
        more["attention_mask"] = torch.empty(1, 1, 0, 0, device=meta)
    each = -(-shape.supervised // shape.rows)
    logits = model.llm(
        inputs_embeds=embeddings,
        position_ids=torch.zeros(size, dtype=torch.long, device=meta),
        logits_to_keep=torch.zeros(each, dtype=torch.long, device=meta),
        use_cache=False,
        **more,
    ).logits.flatten(0, 1)
    return F.cross_entropy(logits.float(), torch.zeros(len(logits), dtype=torch.long, device=meta), reduction="none")


class Live(TorchDispatchMode):
    """Tracks the memory of tensors created inside this context; `peak` is the maximum at any time."""

    def __init__(self, there: Iterable[Tensor] = ()) -> None:
        """there: tensors that exist already; they and their views do not count."""
        super().__init__()
        self.now = self.peak = 0
        self._seen = weakref.WeakSet([tensor.untyped_storage() for tensor in there])

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.now -= size


@contextmanager
def _fused() -> Iterator[None]:
    """Makes scaled dot-product attention use a fused kernel, which keeps no T × T matrix; on the meta device torch
    would pick the unfused one. A TorchFunctionMode would not reach what the backward pass recomputes."""
    own: Any = F
    plain = own.scaled_dot_product_attention
    own.scaled_dot_product_attention = _attention
    try:
        yield
    finally:
        own.scaled_dot_product_attention = plain


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Computes what F.scaled_dot_product_attention does, whose parameters it has, with torch's fused CPU kernel."""
    if attn_mask is not None and not attn_mask.numel():
        attn_mask, is_causal = None, True
    if attn_mask is not None and attn_mask.dtype == torch.bool:  # torch converts it for its kernels, too
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype)
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return kernel(query, key, value, 0.0, is_causal, attn_mask=attn_mask, scale=scale)[0]
