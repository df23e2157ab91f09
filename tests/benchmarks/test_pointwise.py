"""The pointwise layers of the C-Abstractor give the same as convolution (fp32 on the CPU) and as product (all else)."""

import pytest
import torch

from model.projectors.c_abstractor import BottleneckBlock, Pointwise


def results(module: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Output and gradients."""
    module.zero_grad()
    x = x.clone().requires_grad_()
    y = module(x)
    y.square().sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in module.parameters())]


@pytest.mark.parametrize("shape", [(2, 4, 4, 12), (1, 1, 1, 12), (3, 5, 2, 12), (0, 4, 4, 12)])
@pytest.mark.parametrize("make", [lambda: Pointwise(12, 20), lambda: BottleneckBlock(12, 20)])
def test_both_forms_give_the_same(make, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    module, x = make(), torch.randn(shape)
    convolved = results(module, x)
    multiplied = results(module.double(), x.double())
    for a, b in zip(convolved, multiplied, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)


def test_the_output_is_contiguous_and_the_weight_named_as_before() -> None:
    layer = Pointwise(12, 20)
    assert layer(torch.randn(2, 4, 4, 12)).is_contiguous()
    assert {name: tuple(value.shape) for name, value in layer.state_dict().items()} == {"weight": (20, 12)}
