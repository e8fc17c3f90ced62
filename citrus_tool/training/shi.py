"""Initialisation and regularisers of Shi et al. 2021, "Fast Certified Robust Training with Short Warmup".

Differs from the paper in: (1) the last layer keeps PyTorch's own initialisation, as in SABR; (2) terms that are not
finite, or whose layer has no active or no inactive neuron in the batch, count as 0; (3) the input radius is the one
in front of the first weight layer, behind any normalisation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from citrus_tool.network import Network
from citrus_tool.threat import Box


def initialise(network: Network, generator: torch.Generator) -> None:
    """Draws new weights in place: N(0, sqrt(2 pi) / fan_in) for every conv and linear layer but the last; biases 0.

    The last layer gets PyTorch's uniform distribution; batch norms start at identity.
    """
    layers = [node.layer for node in network.nodes if isinstance(node.layer, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        for layer in dict.fromkeys(layers):
            if layer is layers[-1]:
                nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
            else:
                fan_in = layer.weight[0].numel()
                layer.weight.normal_(0.0, math.sqrt(2 * math.pi) / fan_in, generator=generator)
            if layer.bias is not None:
                layer.bias.zero_()
        for node in network.nodes:
            if isinstance(node.layer, nn.BatchNorm1d | nn.BatchNorm2d):
                node.layer.reset_running_stats()
                node.layer.reset_parameters()


def regulariser(network: Network, boxes: Mapping[str, Box], tolerance: float) -> Tensor:
    """Mean over the ReLU layers of L_tight + L_relu (their equations 8 and 9, with this project's notation).

    With (l, u) the box in front of a ReLU, c its centre, r its radius, r0 the mean radius in front of the first
    weight layer, and ratio(p, q) = min(p/q, q/p):
        L_tight = relu(tol - r0 / mean r) / tol
        L_relu  = [relu(tol - ratio(mean c 1[l>0], -mean c 1[u<0]))
                 + relu(tol - ratio(sum (c - mean c)^2 1[l>0], sum (c - mean c)^2 1[u<0]))] / tol

    Args:
        boxes: boxes by node name and INPUT, of one propagation.

    Returns: a scalar; 0 for a network without ReLU.
    """
    first = next(node for node in network.nodes if isinstance(node.layer, nn.Conv2d | nn.Linear))
    r0 = boxes[first.inputs[0]].radius.mean()
    sources = [node.inputs[0] for node in network.nodes if isinstance(node.layer, nn.ReLU) and node.inputs[0] in boxes]
    terms = [_layer_terms(boxes[source], r0, tolerance) for source in sources]
    return torch.stack(terms).mean() if terms else r0.new_zeros(())


def _layer_terms(box: Box, r0: Tensor, tolerance: float) -> Tensor:
    centre, lower, upper = box.centre, box.lower, box.upper
    active, inactive = (lower > 0).to(centre.dtype), (upper < 0).to(centre.dtype)
    deviation = (centre - centre.mean()).square()
    tight = _shortfall(r0, box.radius.mean(), tolerance, both_ways=False)
    means = _shortfall((centre * active).mean(), -(centre * inactive).mean(), tolerance, both_ways=True)
    variances = _shortfall((deviation * active).sum(), (deviation * inactive).sum(), tolerance, both_ways=True)
    return tight + means + variances


def _shortfall(p: Tensor, q: Tensor, tolerance: float, *, both_ways: bool) -> Tensor:
    """relu(tol - p/q) / tol, or with min(p/q, q/p); 0, with zero gradient, where a ratio is nan or infinite."""
    low, high = (torch.minimum(p, q), torch.maximum(p, q)) if both_ways else (p, q)
    usable = (low > 0) & (high > 0) & torch.isfinite(low) & torch.isfinite(high)
    ratio = torch.where(usable, low, 1.0) / torch.where(usable, high, 1.0)
    return torch.where(usable, torch.relu(tolerance - ratio) / tolerance, 0.0)
