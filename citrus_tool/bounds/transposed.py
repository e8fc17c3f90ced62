"""Transposed convolutions of rows in float64 on the CPU, as matrix products with a column of the kernel at a time.

PyTorch hands float64 to no library there: it multiplies row by row and adds the products up one entry at a time. Here
all rows of a chunk are one factor, the kernel's entries of one height the other, and products are added where they
belong with channels last, so that every run in memory is at least as long as there are channels. Measured with 64 and
128 channels of windows of 3 to 16: 1.6 to 2.5 times faster (benchmarks/crown_cost.py).
Chellapilla et al. 2006, "High Performance Convolutional Neural Networks for Document Processing" (convolutions as
products of matrices), turned round.
An entry of the result is the same sum of products as torch's, in another order; bounds/rounding.py counts on no order.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from citrus_tool.bounds.rows import Pair, frame

FEWEST_CHANNELS = 8
"""At the layer's input: with fewer the runs in memory are too short, and torch's own way is faster."""


def conv_transpose(
    values: Tensor, weight: Tensor, *, stride: Pair, dilation: Pair, groups: int, corner: Pair, size: Pair
) -> Tensor:
    """functional.conv_transpose2d of `values` (R, C, h, w) by `weight` (C, c, ky, kx), seen through a frame.

    Args:
        corner: (y, x) place of the frame in the whole result, 0 or more.
        size: (y, x) of the frame; where it leaves the whole result it is 0.

    Returns:
        (R, c * groups, *size), usually with channels last in memory.
    """
    fast = values.dtype == torch.float64 and values.device.type == "cpu"
    if not fast or (torch.is_grad_enabled() and (values.requires_grad or weight.requires_grad)):
        return _by_torch(values, weight, stride, dilation, groups, corner, size)
    if weight.shape[1] * groups < FEWEST_CHANNELS:
        return _by_torch(values.contiguous(), weight, stride, dilation, groups, corner, size)
    rows, channels, *extent = values.shape
    each, inputs = channels // groups, weight.shape[1]
    last = values.permute(0, 2, 3, 1).reshape(-1, channels)
    kernel = weight.reshape(groups, each, inputs, *weight.shape[2:])
    out = values.new_zeros(rows, *size, groups, inputs)
    for ky in range(weight.shape[2]):
        down = _meeting(ky * dilation[0] - corner[0], stride[0], extent[0], size[0])
        if down is None:
            continue
        products = _products(last, kernel[:, :, :, ky].transpose(2, 3))
        products = products.reshape(rows, *extent, groups, weight.shape[3], inputs)
        for kx in range(weight.shape[3]):
            right = _meeting(kx * dilation[1] - corner[1], stride[1], extent[1], size[1])
            if right is not None:
                out[:, down[1], right[1]] += products[:, down[0], right[0], :, kx]
    return out.flatten(3).permute(0, 3, 1, 2)


def _products(last: Tensor, kernel: Tensor) -> Tensor:
    """`last` (M, groups * each) times `kernel` (groups, each, kx, inputs), by groups: (M, groups * kx * inputs)."""
    groups, each = kernel.shape[:2]
    if groups == 1:
        return last @ kernel.reshape(each, -1)
    if each == 1:
        return last[:, :, None] * kernel.reshape(groups, -1)
    return torch.einsum("mge,gek->mgk", last.reshape(-1, groups, each), kernel.reshape(groups, each, -1))


def _meeting(shift: int, stride: int, extent: int, size: int) -> tuple[slice, slice] | None:
    """Which of `extent` entries, at i * stride + shift, lie in [0, size): (their i, their places); None if none do."""
    first = max(0, -(shift // stride))
    last = min(extent - 1, (size - 1 - shift) // stride)
    if last < first:
        return None
    return slice(first, last + 1), slice(first * stride + shift, last * stride + shift + 1, stride)


def _by_torch(
    values: Tensor, weight: Tensor, stride: Pair, dilation: Pair, groups: int, corner: Pair, size: Pair
) -> Tensor:
    whole = functional.conv_transpose2d(values, weight, None, stride, 0, 0, groups, dilation)
    return frame(whole, corner, (corner[0] + size[0], corner[1] + size[1]))
