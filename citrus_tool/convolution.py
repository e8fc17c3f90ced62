"""Convolution with a fast gradient on the CPU. Same values as torch.nn.functional.conv2d.

oneDNN runs the input gradient of a strided convolution with few channels 3 to 5 times slower than a
forward convolution of the same work (measured on a 1-channel 4x4 stride-2 layer). With stride s that
gradient is s*s interleaved stride-1 convolutions (sub-pixel convolution, Shi et al. 2016, "Real-Time
Single Image and Video Super-Resolution", section 3), which run at forward speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv2d(layer: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`layer`'s convolution of x (n, C, H, W) with the given weight and bias, zero padded; differentiable once.

    Args:
        layer: gives stride, padding, dilation and groups.
    """
    sub_pixel = (
        x.device.type == "cpu"
        and max(layer.stride) > 1
        and layer.stride[0] == layer.stride[1]
        and layer.groups == 1
        and tuple(layer.dilation) == (1, 1)
        and not isinstance(layer.padding, str)
    )
    if not sub_pixel:
        return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    out: Tensor = _SubPixelConv.apply(x, weight, bias, layer.stride[0], tuple(layer.padding))  # type: ignore[no-untyped-call]
    return out


class _SubPixelConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        ctx.stride, ctx.padding, ctx.shape, ctx.has_bias = stride, padding, x.shape, bias is not None
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        at_x = at_weight = at_bias = None
        if ctx.needs_input_grad[0]:
            at_x = _input_gradient(grad, weight.to(grad.dtype), ctx.stride, ctx.padding, ctx.shape)
        if ctx.needs_input_grad[1]:
            stride, padding = [ctx.stride] * 2, list(ctx.padding)
            _, at_weight, at_bias = torch.ops.aten.convolution_backward(
                grad,
                x.to(grad.dtype),
                weight.to(grad.dtype),
                [weight.shape[0]] if ctx.has_bias else None,
                stride,
                padding,
                [1, 1],
                False,
                [0, 0],
                1,
                [False, True, ctx.has_bias],
            )
        return at_x, at_weight, at_bias, None, None


def _input_gradient(grad: Tensor, weight: Tensor, stride: int, padding: Sequence[int], shape: Sequence[int]) -> Tensor:
    """The gradient at the input (n, C, H, W) of a convolution from `grad` at its output (n, O, h, w)."""
    n, in_channels, height, width = shape
    weight = F.pad(weight, (0, -weight.shape[3] % stride, 0, -weight.shape[2] % stride))
    out_channels, _, rows, columns = weight.shape
    rows, columns = rows // stride, columns // stride
    channels_last = weight.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    # one stride-1 convolution makes all phases (p, q), each with in_channels channels
    phases = weight.reshape(out_channels, in_channels, rows, stride, columns, stride).permute(3, 5, 1, 0, 2, 4)
    phases = phases.flip(4, 5).reshape(-1, out_channels, rows, columns).contiguous(memory_format=layout)
    parts = F.conv2d(grad, phases, padding=(rows - 1, columns - 1))
    down, right = parts.shape[2], parts.shape[3]
    # pixel (stride * i + p, stride * j + q) of the padded input is phase (p, q) at (i, j); beyond the last one is 0
    bottom, side = max(down * stride, padding[0] + height), max(right * stride, padding[1] + width)
    padded = torch.empty((n, in_channels, bottom, side), dtype=grad.dtype, device=grad.device, memory_format=layout)
    padded[:, :, down * stride :].zero_()
    padded[:, :, :, right * stride :].zero_()
    n_stride, c_stride, y_stride, x_stride = padded.stride()
    view = padded.as_strided(
        (n, in_channels, down, stride, right, stride),
        (n_stride, c_stride, stride * y_stride, y_stride, stride * x_stride, x_stride),
    )
    view.copy_(parts.reshape(n, stride, stride, in_channels, down, right).permute(0, 3, 4, 1, 5, 2))
    return padded[:, :, padding[0] : padding[0] + height, padding[1] : padding[1] + width]
