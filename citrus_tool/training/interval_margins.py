"""Interval bounds for training: bounds/interval.py's rules with a cheaper backward pass, and margins of grouped boxes.

Differs from bounds/interval.py in: (1) a radius may have batch size 1, which stands for all boxes of the batch, so a
constant input radius passes the layers before the first ReLU once and not once per box; (2) strided convolutions
and ReLU have hand-written gradients; (3) the m boxes of an input share one table of last-layer differences.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from citrus_tool.bounds.curves import CURVES, training_domain
from citrus_tool.bounds.interval import INTERVAL
from citrus_tool.convolution import conv2d
from citrus_tool.network import INPUT, Concat, Network, Pointwise, Rules, walk
from citrus_tool.threat import Box


def uniform_box(centre: Tensor, radius: float) -> Box:
    """Boxes of one radius around every centre (n, C, H, W), in the units of the centre; the radius is (1, C, H, W)."""
    return Box(centre=centre, radius=centre.new_full((1, *centre.shape[1:]), radius))


def box_margins(
    network: Network,
    box: Box,
    labels: Tensor,
    *,
    record: dict[str, Box] | None = None,
    rules: Rules | None = None,
) -> Tensor:
    """Lower bounds (n * m, c) of f_y - f_c over n * m boxes, the m of one input in a row; 0 at the true class.

    A last layer that is Linear is elided: W_y - W_c is bounded as one row (Gowal et al. 2018, section 3).

    Args:
        box: boxes of the network's input.
        labels: (n,) classes of the inputs.
        record: filled with the boxes of the input and of every node up to the last layer's input when given.
        rules: the reading; default TRAINING.
    """
    rules = TRAINING if rules is None else rules
    if record is not None:
        record[INPUT] = box
    last = network.nodes[-1]
    if isinstance(last.layer, nn.Linear):
        features = walk(network, rules, box, stop=last.inputs[0], record=record)
        return _elided(last.layer, features, labels)
    logits = walk(network, rules, box, record=record)
    own = labels.repeat_interleave(logits.centre.shape[0] // len(labels))[:, None]
    return (logits.lower.gather(1, own) - logits.upper).scatter(1, own, 0.0)


def _elided(last: nn.Linear, box: Box, labels: Tensor) -> Tensor:
    one_hot = F.one_hot(labels, last.out_features).to(last.weight.dtype)
    weight = (one_hot @ last.weight)[:, None, :] - last.weight  # n c d: W_y - W_c
    centre = box.centre.reshape(len(labels), -1, last.in_features)  # n m d
    radius = box.radius.expand_as(box.centre).reshape(centre.shape)
    logits = F.linear(centre, last.weight, last.bias)
    centre_margin = torch.einsum("nmc,nc->nm", logits, one_hot)[:, :, None] - logits
    return (centre_margin - torch.einsum("nmd,ncd->nmc", radius, weight.abs())).flatten(0, 1)


def logit_margins(logits: Tensor, labels: Tensor) -> Tensor:
    """f_y - f_c (n, c) of concrete logits; 0 at the true class."""
    return logits.gather(1, labels[:, None]) - logits


def robust_cross_entropy(margins: Tensor) -> Tensor:
    """ln(1 + sum over c != y of exp(-margin_c)) for each row (n, c) whose entry at y is 0 (paper, equation 2)."""
    return torch.logsumexp(-margins, dim=1)


def _conv(layer: nn.Conv2d, box: Box) -> Box:
    centre = conv2d(layer, box.centre, layer.weight, layer.bias)
    return Box(centre=centre, radius=conv2d(layer, box.radius, layer.weight.abs(), None))


def _relu(layer: nn.ReLU, box: Box) -> Box:
    centre, radius = _BoxReLU.apply(box.centre, box.radius)  # type: ignore[no-untyped-call]
    return Box(centre=centre, radius=radius)


def _shrunk_relu(layer: nn.ReLU, box: Box, *, factor: float) -> Box:
    unstable = (box.radius > box.centre.abs()).to(box.centre.dtype)
    scale = 1 - (1 - factor) * unstable
    out = _relu(layer, box)
    return Box(centre=out.centre * scale, radius=out.radius * scale)


def shrinking(factor: float) -> Rules:
    """TRAINING with the upper bounds of unstable ReLUs times `factor`: [0, u] becomes [0, factor * u].

    ReLU shrinking of Mueller et al. 2022 (SABR), section 4; its results are no bounds.
    """
    return TRAINING if factor == 1.0 else {**TRAINING, nn.ReLU: partial(_shrunk_relu, factor=factor)}


def _concat(layer: Concat, *boxes: Box) -> Box:
    radius = layer(*(box.radius.expand_as(box.centre) for box in boxes))
    return Box(centre=layer(*(box.centre for box in boxes)), radius=radius)


def inside_domain(layer: Pointwise, box: Box) -> Box:
    """The box (n, *shape), cut where the function has no finite values: what training goes on with."""
    return Box.from_bounds(*training_domain(CURVES[layer.kind], layer.kind, box.lower, box.upper))


def _pointwise(layer: Pointwise, box: Box) -> Box:
    found: Box = INTERVAL[Pointwise](layer, inside_domain(layer, box))
    return found


class _BoxReLU(torch.autograd.Function):
    """ReLU of the box [c - r, c + r] in blocks that stay in the cache, where autograd streams every pass.

    With l = relu(c - r), u = relu(c + r): out = ((u + l) / 2, (u - l) / 2).
    """

    @staticmethod
    def forward(ctx: Any, centre: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        lower, upper, middle, half = (torch.empty_like(centre) for _ in range(4))
        for rows in _blocks(centre):
            low, up, mid, rad = lower[rows], upper[rows], middle[rows], half[rows]
            r = radius if radius.shape[0] != centre.shape[0] else radius[rows]
            torch.sub(centre[rows], r, out=low)
            torch.add(centre[rows], r, out=up)
            torch.clamp(low, min=0, out=low)
            torch.clamp(up, min=0, out=up)
            torch.add(low, up, out=mid).mul_(0.5)
            torch.sub(up, mid, out=rad)
        ctx.save_for_backward(lower, upper)
        ctx.shared_radius = radius.shape[0] != centre.shape[0]
        return middle, half

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        lower, upper = ctx.saved_tensors
        at_centre = torch.empty_like(lower)
        at_radius = torch.zeros_like(lower[:1]) if ctx.shared_radius else torch.empty_like(lower)
        for rows in _blocks(lower):
            c, r = (grad[rows] for grad in grads)
            at_upper = torch.ops.aten.threshold_backward((c + r).mul_(0.5), upper[rows], 0)
            at_lower = torch.ops.aten.threshold_backward((c - r).mul_(0.5), lower[rows], 0)
            torch.add(at_upper, at_lower, out=at_centre[rows])
            if ctx.shared_radius:
                at_radius += at_upper.sub_(at_lower).sum(0, keepdim=True)
            else:
                torch.sub(at_upper, at_lower, out=at_radius[rows])
        return at_centre, at_radius


def _blocks(x: Tensor) -> list[slice]:
    """Slices of the batch axis of about 64k entries on the CPU, one slice elsewhere."""
    n = x.shape[0]
    rows = max(1, 65536 * n // max(1, x.numel())) if x.device.type == "cpu" else n
    return [slice(start, start + rows) for start in range(0, n, rows)]


TRAINING: Rules = {**INTERVAL, nn.Conv2d: _conv, nn.ReLU: _relu, Concat: _concat, Pointwise: _pointwise}
"""The interval reading for training steps."""
