"""The outward margin of rounding: the one home of every correction that makes computed bounds hold in real arithmetic.

The claim, its derivation and what it trusts stand in docs/soundness.md. In short: a sum of n products, computed in
any order, is off by at most gamma(n) * sum |a_i b_i|, gamma(n) = n u / (1 - n u) (Higham 2002, Accuracy and Stability
of Numerical Algorithms, section 3.1). A layer with gain (s, b), |layer(z)|_inf <= s |z|_inf + b computed with absolute
values, is therefore off by at most gamma(n) (s |z|_inf + b), a number per sample that costs no pass over any weight.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from citrus_tool.bounds.curves import CURVES, reach
from citrus_tool.bounds.float32 import FileErrors, grown
from citrus_tool.bounds.interval import INTERVAL, batch_norm_affine, final_margins
from citrus_tool.devices import tf32
from citrus_tool.network import (
    INPUT,
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
    find_rule,
)
from citrus_tool.threat import Box

SAFETY = 1.01
"""Factor on every computed margin: covers the roundings made while the margin itself is computed, all of relative size
below 1e-2."""

OWN = 16
"""Operations per entry besides the sum of products: forming c - r and c + r, the activation, the centre, the sum."""

PER_NODE = 4
"""Additions to a row's offset and merges of its coefficient at one node of a backward pass, at most."""


def unit_roundoff(dtype: torch.dtype) -> float:
    """u: the relative error of one operation rounded to nearest."""
    return torch.finfo(dtype).eps / 2


def gamma(terms: int, dtype: torch.dtype) -> float:
    """The relative error n u / (1 - n u) of a sum of n products, infinite where n u >= 1 (Higham 2002, lemma 3.1)."""
    product = terms * unit_roundoff(dtype)
    return product / (1.0 - product) if product < 1.0 else math.inf


def enclose_bounds(lower: Tensor, upper: Tensor) -> Box:
    """A float64 box that contains [lower, upper] (n, ...), read as exact, whatever the rounding of its centre."""
    low, high = lower.to(torch.float64), upper.to(torch.float64)
    return widen(Box.from_bounds(low, high))


def widen(box: Box) -> Box:
    """`box` grown so that its computed `lower` and `upper` lie outside the exact ones."""
    return Box(
        centre=box.centre, radius=box.radius + 4 * unit_roundoff(box.centre.dtype) * (box.centre.abs() + box.radius)
    )


def exact_products() -> AbstractContextManager[None]:
    """Switches TF32 off for matrix products and cuDNN, so that a float32 product is one; restores the settings."""
    return tf32(allowed=False)


class Gain(NamedTuple):
    """How a layer can amplify over boxes: |layer(z)| <= slope |z|_inf + shift per output entry; scalar, or (n,)."""

    slope: Tensor | float
    shift: Tensor | float
    terms: int  # length of the longest sum of products in one output entry


def _weighted(layer: nn.Conv2d | nn.Linear, box: Box) -> Gain:
    weight = layer.weight.detach().flatten(1)
    shift = 0.0 if layer.bias is None else layer.bias.detach().abs().amax()
    return Gain(weight.abs().sum(1).amax(), shift, weight.shape[1])


def _batch_norm(layer: nn.BatchNorm1d | nn.BatchNorm2d, box: Box) -> Gain:
    scale, shift = batch_norm_affine(layer, 1)
    # shift = bias - mean * scale is itself computed: count its parts in absolute values
    parts = shift.abs() + 2 * (layer.running_mean * scale).abs() if layer.running_mean is not None else shift.abs()
    return Gain(scale.detach().abs().amax(), parts.detach().amax(), 1)


def _affine(layer: Affine, box: Box) -> Gain:
    return Gain(layer.scale.abs().amax(), layer.shift.abs().amax(), 1)


def _pool(layer: nn.AvgPool2d, box: Box) -> Gain:
    kernel = layer.kernel_size
    entries = kernel[0] * kernel[1] if isinstance(kernel, tuple) else kernel**2
    return Gain(entries / (layer.divisor_override or entries), 0.0, entries)


def _max_pool(layer: nn.MaxPool2d, box: Box) -> Gain:
    """With K entries: |slopes| add up to 2 K - 3 at most, and the chords' offsets to 2 (K - 1) |z|."""
    kernel = layer.kernel_size
    entries = kernel**2 if isinstance(kernel, int) else kernel[0] * kernel[1]
    return Gain(4.0 * entries + 4.0, 2.0, entries)


def _pad(layer: Pad, box: Box) -> Gain:
    return Gain(1.0, abs(layer.value), 1)


def _plain(layer: nn.Module, *boxes: Box) -> Gain:
    return Gain(1.0, 0.0, 1)


def _relaxed(layer: nn.Module, box: Box) -> Gain:
    """Activations: 4 |z| + 2 bounds the function and both lines of its linear relaxation (slopes <= 1, f(0) <= 1/2)."""
    return Gain(4.0, 2.0, 1)


def _pointwise(layer: Pointwise, box: Box) -> Gain:
    """|f| + |slope z| is at most `reach` for slopes up to the curve's steepest, and so is a line's offset."""
    return Gain(0.0, 4 * reach(CURVES[layer.kind], box.lower, box.upper).flatten(1).amax(1), 1)


def _product(layer: Multiply | MatMul, x: Box, y: Box) -> Gain:
    """Four times the sums of |x| |y|: the products, both planes' coefficients times their inputs, and the spread."""
    sizes: Tensor = layer(x.centre.abs() + x.radius, y.centre.abs() + y.radius)
    terms = x.centre.shape[-1] if isinstance(layer, MatMul) else 1
    return Gain(0.0, 4 * sizes.flatten(1).amax(1), terms)


GAINS: Rules = {
    nn.Conv2d: _weighted,
    nn.Linear: _weighted,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    Affine: _affine,
    nn.AvgPool2d: _pool,
    nn.MaxPool2d: _max_pool,
    Pad: _pad,
    nn.ReLU: _relaxed,
    nn.LeakyReLU: _relaxed,
    nn.Sigmoid: _relaxed,
    nn.Tanh: _relaxed,
    Add: _plain,
    Reshape: _plain,
    Transpose: _plain,
    Concat: _plain,
    Slice: _plain,
    Select: _plain,
    Pointwise: _pointwise,
    Multiply: _product,
    MatMul: _product,
}


def magnitude(*boxes: Box) -> Tensor:
    """Sum over boxes of max |z| per sample, shape (n,)."""
    return torch.stack([(b.centre.abs() + b.radius).flatten(1).amax(1) for b in boxes]).sum(0)


def layer_error(layer: nn.Module, *inputs: Box, extra_terms: int = 0) -> Tensor:
    """Per sample (n,): gamma(terms + OWN + extra_terms) (slope |z|_inf + shift), the error unit of one layer.

    Bounds the error of every entry of the layer's computed output box. With `extra_terms` = number of entries before
    and after the layer plus PER_NODE for every node of the network it bounds the error of one backward step, per unit
    of l1 norm of the coefficients at the layer's output (docs/soundness.md).
    """
    gain: Gain = GAINS[type(layer)](layer, *inputs)
    dtype = inputs[0].centre.dtype
    size = magnitude(*inputs) * gain.slope + gain.shift
    return SAFETY * gamma(gain.terms + OWN + extra_terms, dtype) * size + torch.finfo(dtype).tiny


def _outward(layer: nn.Module, *inputs: Box) -> Box:
    box: Box = INTERVAL[type(layer)](layer, *inputs)
    slack = layer_error(layer, *inputs)
    return Box(centre=box.centre, radius=box.radius + slack.reshape(-1, *[1] * (box.radius.dim() - 1)))


def _outward_pointwise(layer: Pointwise, box: Box) -> Box:
    """Entry by entry: an entry of 1e40, or one outside the domain, leaves the others as they are."""
    found: Box = INTERVAL[Pointwise](layer, box)
    dtype = box.centre.dtype
    slack = SAFETY * gamma(1 + OWN, dtype) * 4 * reach(CURVES[layer.kind], box.lower, box.upper)
    return Box(centre=found.centre, radius=found.radius + slack + torch.finfo(dtype).tiny)


OUTWARD_INTERVAL: Rules = {**dict.fromkeys(INTERVAL, _outward), Pointwise: _outward_pointwise}
"""INTERVAL with every box grown by its rounding error: contains the exact image of the exact input box."""


class Enclosures(NamedTuple):
    """Boxes over every node's values, and over the INPUT's; and the nodes' errors (n, *shape), FileErrors.found."""

    boxes: Mapping[str, Box]
    file_errors: Mapping[str, Tensor]


def enclosures(network: Network, box: Box) -> Enclosures:
    """What intervals say about all runs that `network.evaluation` speaks of.

    Args:
        box: of the points x + u, or of what the file gets (`Evaluation.rounds_input`); (n, *input_shape).
    """
    errors = FileErrors.of(network)
    boxes = {INPUT: grown(box, errors.at_input(box))}
    for node in network.nodes:
        inputs = [boxes[name] for name in node.inputs]
        image: Box = find_rule(OUTWARD_INTERVAL, node)(node.layer, *inputs)
        boxes[node.name] = grown(image, errors.at(node, *inputs))
    return Enclosures(boxes, errors.found)


def outward_margins(
    network: Network, boxes: Mapping[str, Box], file_errors: Mapping[str, Tensor], labels: Tensor
) -> Tensor:
    """Lower bounds (n, c) of f_y - f_c in all runs that `network.evaluation` speaks of; +inf at the true class.

    Args:
        boxes, file_errors: of the nodes, as `enclosures` gives them.

    Like `interval.margins`, a final Linear layer is elided.
    """
    last = network.nodes[-1]
    if isinstance(last.layer, nn.Linear):
        before = boxes[last.inputs[0]]
        lower = final_margins(last.layer, before, labels) - 4 * layer_error(last.layer, before)[:, None]
        error = file_errors.get(last.name)
        if error is not None:
            lower = lower - 1.001 * (error + error.gather(1, labels[:, None]))
    else:
        box = boxes[last.name]
        lower = final_margins(None, box, labels) - 8 * unit_roundoff(box.centre.dtype) * magnitude(box)[:, None]
    return lower.scatter(1, labels[:, None], math.inf)
