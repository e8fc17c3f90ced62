"""Windows of maps and transposed convolutions of rows, against their definitions and against torch."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional

from citrus_tool.bounds.rows import Window, inner
from citrus_tool.bounds.transposed import conv_transpose

GEOMETRIES = list(itertools.product((1, 2, (2, 1), (3, 4)), (1, 2, (1, 3)), ((1, 1), (3, 3), (2, 4), (1, 3))))

STEPS = [((1, 1), (0, 0)), ((2, 1), (-1, -2)), ((1, 3), (2, -4)), ((1, 1), (9, 0))]


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


@pytest.mark.parametrize(("stride", "dilation", "kernel"), GEOMETRIES)
@pytest.mark.parametrize(("channels", "groups", "inputs"), [(3, 1, 8), (4, 2, 5), (12, 12, 1), (24, 12, 1), (5, 1, 2)])
def test_transposed_convolution_is_torchs(
    stride: int | tuple[int, int],
    dilation: int | tuple[int, int],
    kernel: tuple[int, int],
    channels: int,
    groups: int,
    inputs: int,
) -> None:
    torch.manual_seed(0)
    steps, gaps = _pair(stride), _pair(dilation)
    weight = torch.randn(channels, inputs, *kernel, dtype=torch.float64)
    for extent in ((1, 1), (4, 3)):
        values = torch.randn(3, channels, *extent, dtype=torch.float64)
        values = values.contiguous(memory_format=torch.channels_last) if extent[0] > 1 else values
        whole = functional.conv_transpose2d(values, weight, None, steps, 0, 0, groups, gaps)
        high, wide = whole.shape[2:]
        for (top, left), size in (
            ((0, 0), (high, wide)),
            ((1, 0), (high, wide + 2)),  # past the end on one side, zeros there
            ((0, 1), (max(1, high - 2), 1)),
            ((2, 1), (high + 1, wide)),
        ):
            found = conv_transpose(
                values, weight, stride=steps, dilation=gaps, groups=groups, corner=(top, left), size=size
            )
            expected = functional.pad(whole, (0, size[1] + left, 0, size[0] + top))
            expected = expected[:, :, top : top + size[0], left : left + size[1]]
            assert found.shape == expected.shape
            torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)


def test_transposed_convolution_stays_differentiable() -> None:
    values = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 8, 3, 3, dtype=torch.float64)
    found = conv_transpose(values, weight, stride=(2, 2), dilation=(1, 1), groups=1, corner=(1, 1), size=(8, 8))
    (gradient,) = torch.autograd.grad(found.square().sum() / 2, values)
    torch.testing.assert_close(gradient, functional.conv2d(found.detach(), weight, None, 2, 1))


@pytest.mark.parametrize("extent", [(1, 1), (3, 2), (5, 7)])
@pytest.mark.parametrize(
    ("stride", "offset"), [((1, 1), (0, 0)), ((2, 1), (-1, -2)), ((1, 3), (2, -4)), ((1, 1), (9, 0))]
)
def test_windows_are_gathered_and_scattered_as_defined(
    extent: tuple[int, int], stride: tuple[int, int], offset: tuple[int, int]
) -> None:
    """At the borders, outside the map altogether, and over several samples, in both memory layouts."""
    torch.manual_seed(1)
    shape, grid, rows = (3, 6, 5), (4, 3), 9
    values = torch.randn(2, *shape, dtype=torch.float64)
    position = torch.stack([torch.randint(g, (rows,)) for g in grid], dim=1)
    sample = torch.randint(2, (rows,))
    window = Window(position=position, grid=grid, stride=stride, offset=offset)
    coefficient = torch.randn(rows, 3, *extent, dtype=torch.float64)
    here, maps = torch.zeros_like(coefficient), torch.zeros(rows, *shape, dtype=torch.float64)
    for r, dy, dx in itertools.product(range(rows), range(extent[0]), range(extent[1])):
        y = int(position[r, 0]) * stride[0] + offset[0] + dy
        x = int(position[r, 1]) * stride[1] + offset[1] + dx
        if 0 <= y < shape[1] and 0 <= x < shape[2]:
            here[r, :, dy, dx] = values[sample[r], :, y, x]
            maps[r, :, y, x] = coefficient[r, :, dy, dx]
    for memory in (torch.contiguous_format, torch.channels_last):
        assert torch.equal(window.gather(values.contiguous(memory_format=memory), sample, extent), here)
        assert torch.equal(window.scatter(coefficient.contiguous(memory_format=memory), shape), maps)
        laid = coefficient.contiguous(memory_format=memory)
        torch.testing.assert_close(inner(laid, here), (coefficient * here).sum((1, 2, 3)))
