"""Interval bound propagation (IBP): boxes through the graph, as centre and radius.

Gowal et al. 2018, "On the Effectiveness of Interval Bound Propagation for Training Verifiably Robust Models",
equation 6; the elided last layer is their section 3 ("elision of the last layer").
Differs from the paper in: (1) any graph of canonical layers, not a chain; (2) the margins of every label come from
one table of |W_y - W_c| that all boxes share.

The rules are plain torch: differentiable, any floating dtype and device. They are exact up to rounding; bounds that
must hold in real arithmetic use `rounding.OUTWARD_INTERVAL` in place of INTERVAL (see docs/soundness.md).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from citrus_tool.bounds.curves import CURVES, image
from citrus_tool.errors import UnsupportedNetworkError
from citrus_tool.network import (
    Add,
    Affine,
    Concat,
    MatMul,
    Multiply,
    Network,
    Pad,
    Pointwise,
    Reshape,
    Rules,
    Select,
    Slice,
    Transpose,
    walk,
)
from citrus_tool.threat import Box


def _linear(layer: nn.Linear, box: Box) -> Box:
    return Box(centre=layer(box.centre), radius=functional.linear(box.radius, layer.weight.abs()))


def _conv(layer: nn.Conv2d, box: Box) -> Box:
    if layer.padding_mode != "zeros":
        raise UnsupportedNetworkError(f"Conv2d with padding mode {layer.padding_mode!r} has no bound rule; use zeros.")
    radius = functional.conv2d(
        box.radius, layer.weight.abs(), None, layer.stride, layer.padding, layer.dilation, layer.groups
    )
    return Box(centre=layer(box.centre), radius=radius)


def batch_norm_affine(layer: nn.BatchNorm1d | nn.BatchNorm2d, axes: int) -> tuple[Tensor, Tensor]:
    """(scale, shift) of a batch norm with its running statistics, shaped to broadcast over `axes` per-sample axes.

    Raises UnsupportedNetworkError for a batch norm without running statistics.
    """
    if layer.running_mean is None or layer.running_var is None:
        raise UnsupportedNetworkError("BatchNorm without running statistics is no fixed function; track them.")
    scale = torch.rsqrt(layer.running_var + layer.eps)
    if layer.affine:
        scale = scale * layer.weight
    shift = -layer.running_mean * scale
    if layer.affine:
        shift = shift + layer.bias
    shape = (-1, *[1] * (axes - 1))
    return scale.reshape(shape), shift.reshape(shape)


def _batch_norm(layer: nn.BatchNorm1d | nn.BatchNorm2d, box: Box) -> Box:
    scale, shift = batch_norm_affine(layer, box.centre.dim() - 1)
    return Box(centre=box.centre * scale + shift, radius=box.radius * scale.abs())


def _affine(layer: Affine, box: Box) -> Box:
    return Box(centre=layer(box.centre), radius=box.radius * layer.scale.abs())


def _monotone(layer: nn.Module, box: Box) -> Box:
    return Box.from_bounds(layer(box.lower), layer(box.upper))


def _pointwise(layer: Pointwise, box: Box) -> Box:
    return Box.from_bounds(*image(CURVES[layer.kind], box.lower, box.upper))


def _products(x: Box, y: Box) -> tuple[Tensor, Tensor]:
    """The least and the greatest product, entry by entry: at corners."""
    corners = torch.stack([x.lower * y.lower, x.lower * y.upper, x.upper * y.lower, x.upper * y.upper])
    return corners.amin(0), corners.amax(0)


def _multiply(layer: Multiply, x: Box, y: Box) -> Box:
    return Box.from_bounds(*_products(x, y))


def _matmul(layer: MatMul, x: Box, y: Box) -> Box:
    """Sums of the products' own bounds, tighter than |cx| ry + rx |cy| + rx ry where signs are known."""
    lower, upper = torch.zeros(()), torch.zeros(())
    for i in range(x.centre.shape[-1]):  # one outer product at a time, as all of them are large
        column = Box(centre=x.centre[..., i : i + 1], radius=x.radius[..., i : i + 1])
        row = Box(centre=y.centre[..., i : i + 1, :], radius=y.radius[..., i : i + 1, :])
        low, high = _products(column, row)
        lower, upper = (low, high) if i == 0 else (lower + low, upper + high)
    return Box.from_bounds(lower, upper)


def _leaky_relu(layer: nn.LeakyReLU, box: Box) -> Box:
    if not 0.0 <= layer.negative_slope <= 1.0:
        raise UnsupportedNetworkError(
            f"LeakyReLU with negative_slope {layer.negative_slope} has no bound rule; use [0, 1]."
        )
    return _monotone(layer, box)


def _both(layer: nn.Module, *boxes: Box) -> Box:
    """Layers that average or move entries: the same map for centre and radius."""
    return Box(centre=layer(*(b.centre for b in boxes)), radius=layer(*(b.radius for b in boxes)))


def _pad(layer: Pad, box: Box) -> Box:
    return Box(centre=layer(box.centre), radius=functional.pad(box.radius, layer.pads))


INTERVAL: Rules = {
    nn.Conv2d: _conv,
    nn.Linear: _linear,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    Affine: _affine,
    nn.ReLU: _monotone,
    nn.LeakyReLU: _leaky_relu,
    nn.Sigmoid: _monotone,
    nn.Tanh: _monotone,
    nn.MaxPool2d: _monotone,
    nn.AvgPool2d: _both,
    Add: _both,
    Reshape: _both,
    Transpose: _both,
    Concat: _both,
    Slice: _both,
    Select: _both,
    Pointwise: _pointwise,
    Multiply: _multiply,
    MatMul: _matmul,
    Pad: _pad,
}
"""Box in, box out, for every canonical layer."""


def margins(network: Network, box: Box, labels: Tensor, *, true_class: float = math.inf) -> Tensor:
    """Lower bounds (n, c) of f_y - f_c over `box`; the entry of the true class is `true_class`.

    The last layer, when Linear, is elided: its rows W_y - W_c are bounded, not W_y and W_c apart. Otherwise the
    bound is lower_y - upper_c. With `true_class=0` the loss of certified training (Gowal et al. 2018, section 3) is
    `cross_entropy(-margins, labels)`.

    Args:
        labels: (n,) class index of each box.
    """
    last = network.nodes[-1]
    elide = isinstance(last.layer, nn.Linear)
    final = walk(network, INTERVAL, box, stop=last.inputs[0] if elide else last.name)
    return final_margins(last.layer if elide else None, final, labels).scatter(1, labels[:, None], true_class)


def final_margins(last: nn.Module | None, box: Box, labels: Tensor) -> Tensor:
    """Lower bounds (n, c) of the margins f_y - f_c, without a special value at the true class.

    Args:
        last: the final layer, when it is Linear and `box` (n, d) bounds its input; None when `box` bounds the logits.
    """
    if not isinstance(last, nn.Linear):
        return box.lower.gather(1, labels[:, None]) - box.upper
    classes = last.out_features
    if labels.shape[0] < classes:  # a table of margins per box is smaller than one per class
        weight = last.weight[labels][:, None, :] - last.weight
        radius = torch.einsum("ncd,nd->nc", weight.abs(), box.radius)
    else:
        table = (last.weight[:, None, :] - last.weight).abs().flatten(0, 1)
        every = functional.linear(box.radius, table).reshape(-1, classes, classes)
        radius = every[torch.arange(labels.shape[0], device=labels.device), labels]
    logits: Tensor = last(box.centre)
    return logits.gather(1, labels[:, None]) - logits - radius
