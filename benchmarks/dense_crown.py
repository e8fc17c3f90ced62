"""A dense twin of CROWN: every row of every nonlinear layer, written out for chains of the ConvSmall kind.

Literal and slow on purpose: the yardstick of benchmarks/crown.py and the oracle of tests/bounds. One input at a time;
rows are full coefficient maps; lower and upper bounds are carried side by side; plain float64, no rounding margin.
Zhang et al. 2018 (CROWN), theorem 3.2, adaptive lower slopes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from citrus_tool.bounds.interval import INTERVAL
from citrus_tool.network import Affine, Network, Reshape, walk
from citrus_tool.threat import Box


def dense_crown(network: Network, box: Box, label: int, *, first_by_intervals: bool = False) -> Tensor:
    """Lower bounds (c,) of f_y - f_c for one box of shape (1, *input_shape); +inf at the true class.

    `network` must be a chain of Affine, Conv2d, Linear, ReLU and Reshape. With `first_by_intervals` the rows before
    the first ReLU, where interval bounds are the same, are spared.
    """
    layers = [node.layer for node in network.nodes]
    shapes = [network.input_shape, *(node.shape for node in network.nodes)]
    bounds: dict[int, tuple[Tensor, Tensor]] = {}
    for i, layer in enumerate(layers):
        if isinstance(layer, nn.ReLU) and first_by_intervals and not bounds:
            first = walk(network, INTERVAL, box, stop=network.nodes[i - 1].name)
            bounds[i] = (first.lower.flatten(), first.upper.flatten())
        elif isinstance(layer, nn.ReLU):
            unit = torch.eye(torch.Size(shapes[i]).numel(), dtype=torch.float64).reshape(-1, *shapes[i])
            bounds[i] = (_bound(layers[:i], shapes, bounds, box, unit), -_bound(layers[:i], shapes, bounds, box, -unit))
    unit = torch.zeros(network.num_classes, network.num_classes, dtype=torch.float64)
    unit[:, label] = 1.0
    margins = _bound(layers, shapes, bounds, box, unit - torch.eye(network.num_classes, dtype=torch.float64))
    margins[label] = torch.inf
    return margins


def _bound(
    layers: list[nn.Module],
    shapes: list[tuple[int, ...]],
    bounds: dict[int, tuple[Tensor, Tensor]],
    box: Box,
    rows: Tensor,
) -> Tensor:
    """Lower bounds (R,) of the rows (R, *shape) of the last of `layers`."""
    offset = torch.zeros(len(rows), dtype=torch.float64)
    for i in reversed(range(len(layers))):
        layer = layers[i]
        if isinstance(layer, nn.Linear):
            offset = offset + rows @ layer.bias
            rows = rows @ layer.weight
        elif isinstance(layer, nn.Conv2d):
            offset = offset + rows.sum((2, 3)) @ layer.bias
            rows = torch.nn.grad.conv2d_input(
                (len(rows), *shapes[i]), layer.weight, rows, layer.stride, layer.padding, layer.dilation, layer.groups
            )
        elif isinstance(layer, Affine):
            offset = offset + (rows * layer.shift).flatten(1).sum(1)
            rows = rows * layer.scale
        elif isinstance(layer, nn.ReLU):
            lower, upper = (b.reshape(shapes[i]) for b in bounds[i])
            unstable = (lower < 0) & (upper > 0)
            chord = torch.where(unstable, upper / (upper - lower), (lower >= 0).double())
            below = torch.where(unstable, (upper > -lower).double(), (lower >= 0).double())
            negative = rows.clamp(max=0)
            offset = offset - (negative * torch.where(unstable, chord * lower, 0.0)).flatten(1).sum(1)
            rows = rows.clamp(min=0) * below + negative * chord
        elif isinstance(layer, Reshape):
            rows = rows.reshape(len(rows), *shapes[i])
        else:
            raise TypeError(f"the dense twin has no rule for {type(layer).__name__}")
    return offset + (rows * box.centre[0]).flatten(1).sum(1) - (rows.abs() * box.radius[0]).flatten(1).sum(1)
