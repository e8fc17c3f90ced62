"""CROWN spelled out with explicit matrices: one input, one dense matrix per layer, every intermediate row.

The matrices come from running the layer on unit vectors, so nothing of the backward rules is shared. The relaxations
of single neurons are the package's; they have tests of their own.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import torch
from torch import Tensor, nn

from citrus_tool.bounds.interval import INTERVAL
from citrus_tool.bounds.relaxation import RELAXATIONS, Lines, Relaxation
from citrus_tool.network import INPUT, Network, Node, size
from citrus_tool.threat import Box


@functools.lru_cache(maxsize=64)
def _matrices(network: Network, node: Node) -> tuple[list[Tensor], Tensor]:
    """A linear layer as (one matrix per input, shift)."""
    shapes = [network.shape_of(name) for name in node.inputs]
    zeros = [torch.zeros(1, *shape, dtype=torch.float64) for shape in shapes]
    shift = node.layer(*zeros).flatten()
    matrices = []
    for i, shape in enumerate(shapes):
        units = torch.eye(size(shape), dtype=torch.float64).reshape(-1, *shape)
        inputs = [units if j == i else zeros[j].expand(len(units), *shapes[j]) for j in range(len(shapes))]
        matrices.append((node.layer(*inputs).flatten(1) - shift).T)
    return matrices, shift


def _nonlinear(rows: Tensor, relaxation: Relaxation, node: Node, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    positive, negative = rows.clamp(min=0), rows.clamp(max=0)
    if isinstance(relaxation, Lines):
        below = relaxation.lower_offset
        offset = negative @ relaxation.upper_offset.flatten()
        offset = offset if below is None else offset + positive @ below.flatten()
        return positive * relaxation.lower_slope.flatten() + negative * relaxation.upper_slope.flatten(), offset
    assert isinstance(node.layer, nn.MaxPool2d)
    layer: Any = node.layer
    (kernel, stride, padding, dilation) = (
        v if isinstance(v, tuple | list) else (v, v)
        for v in (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    )
    chosen, above = (torch.zeros(rows.shape[1], size(shape), dtype=torch.float64) for _ in range(2))
    _, height, width = node.shape
    for c, k, y, x in itertools.product(*(range(length) for length in relaxation.slopes.shape[1:])):
        row = y * stride[0] - padding[0] + k // kernel[1] * dilation[0]
        column = x * stride[1] - padding[1] + k % kernel[1] * dilation[1]
        if 0 <= row < shape[1] and 0 <= column < shape[2]:
            place = (c * height + y) * width + x, (c * shape[1] + row) * shape[2] + column
            chosen[place], above[place] = relaxation.chosen[0, c, 0, y, x] == k, relaxation.slopes[0, c, k, y, x]
    return positive @ chosen + negative @ above, negative @ relaxation.offset.flatten()


def carry(network: Network, relaxations: dict[str, Relaxation], start: str, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (R, entries of `start`) as (coefficient (R, d), offset (R,)) in the input."""
    pending = {start: rows}
    offset = torch.zeros(len(rows), dtype=torch.float64)
    for node in reversed(network.nodes):
        if node.name not in pending:
            continue
        value = pending.pop(node.name)
        if node.name in relaxations:
            part, shift = _nonlinear(value, relaxations[node.name], node, network.shape_of(node.inputs[0]))
            parts = [part]
            offset = offset + shift
        else:
            matrices, constant = _matrices(network, node)
            parts = [value @ matrix for matrix in matrices]
            offset = offset + value @ constant
        for name, part in zip(node.inputs, parts, strict=True):
            pending[name] = pending[name] + part if name in pending else part
    return pending[INPUT], offset


def lower(network: Network, relaxations: dict[str, Relaxation], start: str, rows: Tensor, box: Box) -> Tensor:
    """Least values (R,) of rows over a box of one input."""
    coefficient, offset = carry(network, relaxations, start, rows)
    return offset + coefficient @ box.centre.flatten() - coefficient.abs() @ box.radius.flatten()


def literal_crown(network: Network, box: Box, label: int) -> Tensor:
    """Lower bounds (c,) of the margins of one input (box of batch 1); the true class is +inf."""
    boxes = {INPUT: box}
    relaxations: dict[str, Relaxation] = {}
    nonlinear = {node.name for node in network.nodes if type(node.layer) in RELAXATIONS}
    for node in network.nodes:
        source = node.inputs[0]
        if node.name in nonlinear:
            if source != INPUT and source not in nonlinear:
                unit = torch.eye(size(network.shape_of(source)), dtype=torch.float64)
                low = lower(network, relaxations, source, unit, box).reshape(boxes[source].centre.shape)
                high = -lower(network, relaxations, source, -unit, box).reshape(boxes[source].centre.shape)
                boxes[source] = Box.from_bounds(low, high)
            relaxations[node.name] = RELAXATIONS[type(node.layer)](node.layer, boxes[source])
        boxes[node.name] = INTERVAL[type(node.layer)](node.layer, *(boxes[name] for name in node.inputs))
    identity = torch.eye(network.num_classes, dtype=torch.float64)
    margins = lower(network, relaxations, network.output_name, identity[label] - identity, box)
    margins[label] = torch.inf
    return margins
