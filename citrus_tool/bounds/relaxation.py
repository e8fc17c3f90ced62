"""Linear relaxations of nonlinear layers over a box: lines below and above, kept apart from the rules that use them.

ReLU and the S-shaped functions after Zhang et al. 2018, "Efficient Neural Network Robustness Certification with
General Activation Functions" (CROWN), tables 2 and 3 and the adaptive lower slope of its section 3.4.
Differs from the paper in: (1) slopes come first and may be any numbers: every offset is then the closed-form extremum
of f(z) - slope * z over the interval, so the lines are sound however a slope was found or rounded; (2) tangent points
are bisected, with the chord where it is valid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from citrus_tool.bounds.curves import CURVES, curve_lines
from citrus_tool.bounds.pools import MaxPoolRelaxation, max_pool_planes
from citrus_tool.bounds.rounding import unit_roundoff
from citrus_tool.network import MatMul, Multiply, Pointwise, Rules
from citrus_tool.threat import Box


@dataclass(frozen=True, kw_only=True)
class Lines:
    """lower_slope * z + lower_offset <= f(z) <= upper_slope * z + upper_offset for z in the box, elementwise.

    All of shape (n, *shape). `lower_offset` None stands for zeros (ReLU, LeakyReLU).
    """

    lower_slope: Tensor
    upper_slope: Tensor
    upper_offset: Tensor
    lower_offset: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class ProductRelaxation:
    """Relaxation of products x y, matrix products included, about the boxes' centres p and q.

    x y = q x + p y - p q + (x - p)(y - q), and the last term is within `spread` of 0. That is the mean of McCormick's
    planes (1976), of the two below and of the two above; all are equally far off at the centre.

    Attributes:
        left, right: p (n, *shape of x) and q (n, *shape of y).
        constant: (n, *shape) p q.
        spread: (n, *shape) at least the products of the radii.
    """

    left: Tensor
    right: Tensor
    constant: Tensor
    spread: Tensor


Relaxation = Lines | MaxPoolRelaxation | ProductRelaxation


def leaky_lines(lower: Tensor, upper: Tensor, slope: float) -> Lines:
    """Lines of max(z, slope * z), 0 <= slope <= 1: chord above; below slope 1 where upper > -lower, else `slope`."""
    active, inactive = lower >= 0, upper <= 0
    stable = active | inactive
    chord = (upper - slope * lower) / (upper - lower)
    at_lower, at_upper = slope * lower - chord * lower, upper - chord * upper
    guard = 8 * unit_roundoff(lower.dtype) * (lower.abs() + upper.abs())
    ones, zeros = torch.ones_like(lower), torch.zeros_like(lower)
    settled = torch.where(active, ones, ones * slope)
    return Lines(
        lower_slope=torch.where(stable, settled, torch.where(upper > -lower, ones, ones * slope)),
        upper_slope=torch.where(stable, settled, chord),
        upper_offset=torch.where(stable, zeros, torch.maximum(at_lower, at_upper) + guard),
    )


@dataclass(frozen=True, kw_only=True)
class SShaped:
    """An increasing function, convex below 0 and concave above, with f(-z) = 2 f(0) - f(z).

    `touch(slope)` is the z >= 0 where the derivative equals `slope`. Elementwise: results are shaped like the argument.
    """

    value: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]
    touch: Callable[[Tensor], Tensor]


def _sigmoid_touch(slope: Tensor) -> Tensor:
    # s (1 - s) = slope for s >= 1/2; log(s / (1 - s)) = log(s^2 / slope) does not cancel
    s = (1 + (1 - 4 * slope).clamp(min=0).sqrt()) / 2
    return (s.square() / slope).log().clamp(min=0)


def _tanh_touch(slope: Tensor) -> Tensor:
    # 1 - t^2 = slope for t >= 0; atanh(t) = log((1 + t)^2 / slope) / 2
    t = (1 - slope).clamp(min=0).sqrt()
    return (((1 + t).square() / slope).log() / 2).clamp(min=0)


SIGMOID = SShaped(value=torch.sigmoid, derivative=lambda z: torch.sigmoid(z) * torch.sigmoid(-z), touch=_sigmoid_touch)
TANH = SShaped(
    value=torch.tanh, derivative=lambda z: 4 * torch.sigmoid(2 * z) * torch.sigmoid(-2 * z), touch=_tanh_touch
)

BISECTIONS = 40
"""Halvings of the interval of a tangent point: 2^-40 of its width. Offsets follow from slopes, so bounds stay sound."""


def _upper_slope(f: SShaped, lower: Tensor, upper: Tensor) -> Tensor:
    """Slope of the line above f: the tangent at the midpoint (concave part), the chord, or the tangent from `lower`."""
    middle = f.derivative((lower + upper) / 2)
    width = upper - lower
    chord = torch.where(width > 1e-6, (f.value(upper) - f.value(lower)) / width, middle)
    low, high = torch.zeros_like(upper), upper.clamp(min=0)
    for _ in range(BISECTIONS):  # the d in [0, upper] whose tangent passes through (lower, f(lower))
        d = (low + high) / 2
        above = f.derivative(d) * (d - lower) >= f.value(d) - f.value(lower)
        low, high = torch.where(above, d, low), torch.where(above, high, d)
    bent = torch.where(f.derivative(upper) >= chord, chord, f.derivative(high))
    return torch.where(lower >= 0, middle, torch.where(upper <= 0, chord, bent)).clamp(min=0)


def s_shaped_lines(lower: Tensor, upper: Tensor, f: SShaped) -> Lines:
    """Lines of an S-shaped function for intervals (n, *shape), degenerate ones included."""
    upper_slope = _upper_slope(f, lower, upper)
    lower_slope = _upper_slope(f, -upper, -lower)  # by symmetry
    return Lines(
        lower_slope=lower_slope,
        upper_slope=upper_slope,
        lower_offset=s_shaped_offset(f, lower, upper, lower_slope, above=False),
        upper_offset=s_shaped_offset(f, lower, upper, upper_slope, above=True),
    )


def s_shaped_offset(f: SShaped, lower: Tensor, upper: Tensor, slope: Tensor, *, above: bool) -> Tensor:
    """The least offset that puts slope * z + offset above f on [lower, upper], or the greatest below; slope >= 0.

    Elementwise, all (n, *shape). f(z) - slope * z has its only local maximum at touch(slope), its only local minimum at
    -touch(slope).
    """
    touch = f.touch(slope) if above else -f.touch(slope)
    points = (lower, upper, torch.minimum(torch.maximum(touch, lower), upper))
    gaps = torch.stack([f.value(z) - slope * z for z in points])
    guard = 64 * unit_roundoff(lower.dtype) * (1 + slope * torch.maximum(lower.abs(), upper.abs()))
    return gaps.amax(0) + guard if above else gaps.amin(0) - guard


def _relu(layer: nn.ReLU, box: Box) -> Lines:
    return leaky_lines(box.lower, box.upper, 0.0)


def _leaky_relu(layer: nn.LeakyReLU, box: Box) -> Lines:
    return leaky_lines(box.lower, box.upper, float(layer.negative_slope))


def _sigmoid(layer: nn.Sigmoid, box: Box) -> Lines:
    return s_shaped_lines(box.lower, box.upper, SIGMOID)


def _tanh(layer: nn.Tanh, box: Box) -> Lines:
    return s_shaped_lines(box.lower, box.upper, TANH)


def _pointwise(layer: Pointwise, box: Box) -> Lines:
    return Lines(**curve_lines(CURVES[layer.kind], box.lower, box.upper)._asdict())


def _product(layer: Multiply | MatMul, x: Box, y: Box) -> ProductRelaxation:
    # what p q and the spread are off by, as sums of products are, the layer's error unit pays for
    return ProductRelaxation(
        left=x.centre, right=y.centre, constant=layer(x.centre, y.centre), spread=layer(x.radius, y.radius)
    )


BILINEAR: tuple[type[nn.Module], ...] = (Multiply, MatMul)
"""Layers of two inputs, linear in each."""

RELAXATIONS: Rules = {
    nn.ReLU: _relu,
    nn.LeakyReLU: _leaky_relu,
    nn.Sigmoid: _sigmoid,
    nn.Tanh: _tanh,
    nn.MaxPool2d: max_pool_planes,
    Pointwise: _pointwise,
    Multiply: _product,
    MatMul: _product,
}
"""Boxes over the layer's inputs in, Relaxation out."""


def _kinked(box: Box) -> Tensor:
    return ~((box.lower >= 0) | (box.upper <= 0))  # NaN counts as open


def _everywhere(box: Box) -> Tensor:
    return ~(box.radius == 0)


OPEN: dict[type[nn.Module], Callable[[Box], Tensor]] = {
    nn.ReLU: _kinked,
    nn.LeakyReLU: _kinked,
    nn.Sigmoid: _everywhere,
    nn.Tanh: _everywhere,
    nn.MaxPool2d: _everywhere,
    Pointwise: _everywhere,
    Multiply: _everywhere,
    MatMul: _everywhere,
}
"""Which entries of the box over one of a layer's inputs a tighter bound can help: (n, *shape) bool."""
