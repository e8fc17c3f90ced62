"""The sub-pixel input gradient against PyTorch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from citrus_tool.convolution import conv2d


@pytest.mark.parametrize("size", [(7, 9), (12, 8), (13, 13)])
@pytest.mark.parametrize("padding", [0, 1, (2, 1)])
@pytest.mark.parametrize(
    ("kernel", "stride"), [(4, 2), (3, 2), (1, 2), (5, 3), (3, 1), ((2, 4), 2), (3, (2, 1)), (2, 3)]
)
def test_values_and_gradients_equal_pytorch(
    kernel: int | tuple[int, int], stride: int | tuple[int, int], padding: int | tuple[int, int], size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 3, kernel, stride=stride, padding=padding).double()
    x = torch.randn(4, 2, *size, dtype=torch.float64, requires_grad=True)
    got, want = conv2d(layer, x, layer.weight, layer.bias), layer(x)
    torch.testing.assert_close(got, want)
    seed = torch.randn_like(want)
    inputs = (x, layer.weight, layer.bias)
    torch.testing.assert_close(torch.autograd.grad(got, inputs, seed), torch.autograd.grad(want, inputs, seed))


@pytest.mark.parametrize("options", [{"groups": 2}, {"dilation": 2}, {"padding": "valid"}, {"bias": False}])
def test_other_convolutions(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 4, 3, stride=2, **options).double()  # type: ignore[arg-type]
    x = torch.randn(2, 2, 9, 9, dtype=torch.float64, requires_grad=True)
    got, want = conv2d(layer, x, layer.weight, layer.bias), layer(x)
    torch.testing.assert_close(got, want)
    inputs = (*layer.parameters(), x)
    for a, b in zip(torch.autograd.grad(got.sum(), inputs), torch.autograd.grad(want.sum(), inputs), strict=True):
        torch.testing.assert_close(a, b)
