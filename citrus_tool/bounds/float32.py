"""What a run of the file in float32 can differ by from real arithmetic, layer by layer.

A run is modelled as z_l = layer_l(its inputs) + delta_l with |delta_l| <= e_l, entry by entry: the error of a sum of n
products is at most gamma(n) (|W| |z| + |b|) in any order of summation, with or without fused multiply-adds (Higham
2002, Accuracy and Stability of Numerical Algorithms, section 3.1). Layers that only select or move entries are exact.
What the model covers, and its derivation, stand in docs/soundness.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from citrus_tool.bounds.curves import CURVES, image
from citrus_tool.bounds.interval import batch_norm_affine
from citrus_tool.errors import UnsupportedNetworkError
from citrus_tool.network import (
    INPUT,
    Add,
    Affine,
    Concat,
    MatMul,
    Multiply,
    Network,
    Node,
    Pad,
    Pointwise,
    Reshape,
    Rules,
    Select,
    Slice,
    Transpose,
    find_rule,
)
from citrus_tool.threat import Box

UNIT = 2.0**-24
"""Relative error of one float32 operation rounded to nearest: the unit roundoff of 24 bits."""

SPARE = 16
"""Roundings of a term beside those of its sum: constants that a runtime folds anew (a batch norm into the convolution
before it, 1 / std, a scale into a matrix) and the operations on the sum. Seven are the most that occur; the rest covers
what this computation rounds itself, and what a checker computes otherwise."""

FLOOR = 2.0**-66
"""Absolute error of a term that underflows, or is flushed to zero (2^-126), times LARGEST, which may multiply it."""

LARGEST = 2.0**60
"""Magnitude of values and constants up to which no product of two overflows float32 (2^128), however runtimes associate
layers. Above it nothing is known of a run."""

HOPELESS = 2.0**700
"""Error of values above LARGEST, and of the outputs of an input that has one: what float64 still computes with, and
more than any margin, so that nothing is proven of the input."""

SMOOTH = 2.0**-19
"""Absolute error of onnxruntime's sigmoid and tanh, which are rational approximations: seven times what was measured
over all exponents (tests/bounds/test_float32.py)."""


def gamma32(terms: int) -> float:
    """The relative error n u / (1 - n u) of a sum of n products in float32, infinite where n u >= 1."""
    product = terms * UNIT
    return product / (1.0 - product) if product < 1.0 else torch.inf


Sums = list[tuple[Tensor, int]]
"""Parts of a layer's sum: the absolute values of the terms of each, added up over the box, (n, *shape); and through how
many additions they may go."""


def _linear(layer: nn.Linear, before: Sequence[int], z: Tensor) -> Sums:
    bias = None if layer.bias is None else layer.bias.abs()
    return [(functional.linear(z, layer.weight.abs(), bias), layer.in_features)]


def _conv(layer: nn.Conv2d, before: Sequence[int], z: Tensor) -> Sums:
    bias = None if layer.bias is None else layer.bias.abs()
    size = functional.conv2d(z, layer.weight.abs(), bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    return [(size, layer.weight[0].numel())]


def _batch_norm(layer: nn.BatchNorm1d | nn.BatchNorm2d, before: Sequence[int], z: Tensor) -> Sums:
    scale, _ = batch_norm_affine(layer, z.dim() - 1)
    assert layer.running_mean is not None
    shift = scale.abs() * layer.running_mean.abs().reshape(scale.shape)
    shift = shift + layer.bias.abs().reshape(scale.shape) if layer.affine else shift
    return [(z * scale.abs(), 0), (shift.expand_as(z), before[0])]


def _affine(layer: Affine, before: Sequence[int], z: Tensor) -> Sums:
    return [] if layer.exact else [(z * layer.scale.abs(), 0), (layer.shift.abs().expand_as(z), before[0])]


def _add(layer: Add, before: Sequence[int], x: Tensor, y: Tensor) -> Sums:
    return [(x, before[1]), (y, before[0])]


def _pool(layer: nn.AvgPool2d, before: Sequence[int], z: Tensor) -> Sums:
    kernel = layer.kernel_size
    return [(layer(z), kernel[0] * kernel[1] if isinstance(kernel, tuple) else kernel**2)]


def _leaky(layer: nn.LeakyReLU, before: Sequence[int], z: Tensor) -> Sums:
    return [(abs(layer.negative_slope) * z, 0)]


def _smooth(layer: nn.Module, before: Sequence[int], z: Tensor) -> Tensor:
    return torch.full_like(z, SMOOTH)


def _pointwise(layer: Pointwise, before: Sequence[int], box: Box) -> Tensor:
    """As measured (`curves.FileError`), of the largest value and input in the box; HOPELESS outside the domain."""
    curve = CURVES[layer.kind]
    value = torch.stack([end.abs() for end in image(curve, box.lower, box.upper)]).amax(0)
    size, error = box.centre.abs() + box.radius, curve.file_error
    found = error.of_value * value + error.of_input * size + error.constant + FLOOR
    return found.masked_fill(~((value <= LARGEST) & (size <= LARGEST)), HOPELESS)


def _multiply(layer: Multiply, before: Sequence[int], x: Tensor, y: Tensor) -> Sums:
    return [(x * y, 0)]


def _matmul(layer: MatMul, before: Sequence[int], x: Tensor, y: Tensor) -> Sums:
    return [(x @ y, x.shape[-1])]


def _exact(layer: nn.Module, before: Sequence[int], *zs: Tensor) -> Sums:
    return []


SUMS: Rules = {
    nn.Linear: _linear,
    nn.Conv2d: _conv,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    Affine: _affine,
    Pointwise: _pointwise,
    Multiply: _multiply,
    MatMul: _matmul,
    Add: _add,
    nn.AvgPool2d: _pool,
    nn.LeakyReLU: _leaky,
    nn.Sigmoid: _smooth,
    nn.Tanh: _smooth,
    **dict.fromkeys((nn.ReLU, nn.MaxPool2d, Pad, Reshape, Transpose, Concat, Slice, Select), _exact),
}
"""(layer, terms carried to its inputs, magnitudes at its inputs) -> Sums, none where a layer is exact, or the error.

What a layer adds to a sum may be fused into it, and then goes through as many additions (`before`) as the sum has; the
sum's own terms, whose error its own layer has, go through few more."""

CARRYING: tuple[type[nn.Module], ...] = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    Affine,
    Add,
    Pad,
    Reshape,
    Transpose,
    Concat,
    Slice,
    Select,
)
"""Layers that runtimes may fuse into the sum before them, or move past such a layer: a summand of theirs can go through
as many additions as that sum has."""


def _terms(layer: nn.Module, shape: Sequence[int]) -> int | None:
    """The terms of the layer's sums, for a first input of this shape; None for a layer that has none."""
    if isinstance(layer, MatMul):
        return shape[-1]
    if isinstance(layer, nn.Linear):
        return layer.in_features
    if isinstance(layer, nn.Conv2d):
        return layer.weight[0].numel()
    if not isinstance(layer, nn.AvgPool2d):
        return None
    kernel = layer.kernel_size
    return kernel[0] * kernel[1] if isinstance(kernel, tuple) else kernel**2


@dataclass(frozen=True, kw_only=True)
class FileErrors:
    """The errors e of a network's nodes, asked for in topological order for one batch of boxes.

    Attributes:
        carried: by node, the most terms of a sum that reaches it unbroken.
        found: by node, and at INPUT, the errors that were asked for so far; (n, *shape), none where a node is exact.
    """

    network: Network
    carried: Mapping[str, int]
    found: dict[str, Tensor] = field(default_factory=dict)

    @staticmethod
    def of(network: Network) -> FileErrors:
        """Of a network in evaluation mode; with arithmetic `real` no node has any.

        Raises UnsupportedNetworkError for constants above LARGEST, with float32.
        """
        if network.evaluation.arithmetic == "float32":
            _require_moderate(network)
        carried = {INPUT: 0}
        for node in network.nodes:
            before = max(carried[name] for name in node.inputs)
            carried[node.name] = _terms(node.layer, network.shape_of(node.inputs[0])) or (
                before if isinstance(node.layer, CARRYING) else 0
            )
        return FileErrors(network=network, carried=carried)

    def at_input(self, box: Box) -> Tensor | None:
        """(n, *input_shape) how far float32 pixels can lie from the points x + u of `box`; None: nowhere."""
        evaluation = self.network.evaluation
        if evaluation.arithmetic == "real" or not evaluation.rounds_input:
            return None
        self.found[INPUT] = gamma32(2) * (box.centre.abs() + box.radius) + FLOOR
        return self.found[INPUT]

    def at(self, node: Node, *inputs: Box) -> Tensor | None:
        """(n, *node.shape) the error of one layer, given boxes over its inputs; None where it is exact.

        HOPELESS where values are above LARGEST, and at the output of an input that has such anywhere.
        """
        error = self._at(node, inputs) if self.network.evaluation.arithmetic == "float32" else None
        if node.name == self.network.output_name and self._beyond is not None:
            error = torch.zeros_like(self._beyond).expand(-1, *node.shape) if error is None else error
            error = torch.maximum(error, self._beyond)
        if error is not None:
            self.found[node.name] = error
        return error

    @property
    def _beyond(self) -> Tensor | None:
        """(n, 1) HOPELESS for inputs with values above LARGEST, else 0; None where there are none."""
        worst = [error.flatten(1).amax(1, keepdim=True) for error in self.found.values()]
        hopeless = [torch.zeros_like(one).masked_fill(one >= HOPELESS, HOPELESS) for one in worst]
        return torch.stack(hopeless).amax(0) if any(bool(one.any()) for one in hopeless) else None

    def _at(self, node: Node, inputs: Sequence[Box]) -> Tensor | None:
        before = [self.carried[name] for name in node.inputs]
        if isinstance(node.layer, Pointwise):
            return _pointwise(node.layer, before, *inputs)
        sizes = [box.centre.abs() + box.radius for box in inputs]
        found: Sums | Tensor = find_rule(SUMS, node)(node.layer, before, *sizes)
        if isinstance(found, Tensor) or not found:
            return found if isinstance(found, Tensor) else None
        errors = [size * gamma32(terms + SPARE) + (terms + SPARE) * FLOOR for size, terms in found]
        beyond = ~(torch.stack([size for size, _ in found]).sum(0) <= LARGEST)
        return torch.stack(errors).sum(0).masked_fill(beyond, HOPELESS)


def _require_moderate(network: Network) -> None:
    for node in network.nodes:
        constants = list(node.layer.parameters()) + list(node.layer.buffers())
        if isinstance(node.layer, nn.BatchNorm1d | nn.BatchNorm2d):
            constants += batch_norm_affine(node.layer, 1)
        if not all(bool((value.abs() <= LARGEST).all()) for value in constants if value.is_floating_point()):
            raise UnsupportedNetworkError(
                f"node {node.name!r}: it has constants above {LARGEST:.1e}, with which float32 may overflow; scale them"
                " down, or ask for real arithmetic (--arithmetic real)."
            )


def grown(box: Box, error: Tensor | None) -> Box:
    """The box with its radius grown by `error` (n, *shape)."""
    return box if error is None else Box(centre=box.centre, radius=box.radius + error)
