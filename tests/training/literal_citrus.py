"""Literal twins of the training loss: nested loops, one box at a time, bounds as [lower, upper].

Nothing here uses the package's bounds. Sources: the paper's Algorithm 1 and equation 2; Gowal et al. 2018, eq. 6.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from citrus_tool.network import INPUT, Add, Affine, Network, Reshape


def interval(layer: nn.Module, *inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """[lower, upper] through one layer."""
    lower, upper = inputs[0]
    if isinstance(layer, nn.Linear):
        positive, negative = layer.weight.clamp(min=0), layer.weight.clamp(max=0)
        return (
            lower @ positive.T + upper @ negative.T + layer.bias,
            upper @ positive.T + lower @ negative.T + layer.bias,
        )
    if isinstance(layer, nn.Conv2d):
        positive, negative = layer.weight.clamp(min=0), layer.weight.clamp(max=0)

        def conv(x: Tensor, weight: Tensor) -> Tensor:
            return F.conv2d(x, weight, None, layer.stride, layer.padding)

        bias = layer.bias[None, :, None, None]
        return (
            conv(lower, positive) + conv(upper, negative) + bias,
            conv(upper, positive) + conv(lower, negative) + bias,
        )
    if isinstance(layer, nn.ReLU):
        return lower.clamp(min=0), upper.clamp(min=0)
    if isinstance(layer, Reshape):
        return layer(lower), layer(upper)
    if isinstance(layer, Add):
        return lower + inputs[1][0], upper + inputs[1][1]
    if isinstance(layer, Affine):
        ends = lower * layer.scale + layer.shift, upper * layer.scale + layer.shift
        return torch.minimum(*ends), torch.maximum(*ends)
    if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
        shape = (1, -1, *[1] * (lower.dim() - 2))
        scale = (layer.weight / torch.sqrt(layer.running_var + layer.eps)).reshape(shape)
        shift = layer.bias.reshape(shape) - layer.running_mean.reshape(shape) * scale
        ends = lower * scale + shift, upper * scale + shift
        return torch.minimum(*ends), torch.maximum(*ends)
    raise NotImplementedError(type(layer))


def interval_record(network: Network, lower: Tensor, upper: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """[lower, upper] of every node; the batch axis is kept."""
    values = {INPUT: (lower, upper)}
    for node in network.nodes:
        values[node.name] = interval(node.layer, *(values[name] for name in node.inputs))
    return values


def ibp_loss(network: Network, centre: Tensor, label: int, tau: float) -> Tensor:
    """Equation 2 on B(centre, tau), with upper bounds of the differences o_c - o_y by the elided last layer."""
    *_, last = network.nodes
    values = interval_record(network, (centre - tau)[None], (centre + tau)[None])
    if not isinstance(last.layer, nn.Linear):
        lower, upper = (bound[0] for bound in values[last.name])
        differences = [upper[c] - lower[label] for c in range(len(upper)) if c != label]
    else:
        lower, upper = (bound[0] for bound in values[last.inputs[0]])
        weight, bias = last.layer.weight, last.layer.bias
        differences = []
        for c in range(weight.shape[0]):
            if c != label:
                row = weight[c] - weight[label]
                differences.append(row.clamp(min=0) @ upper + row.clamp(max=0) @ lower + bias[c] - bias[label])
    return torch.log(1 + sum(torch.exp(d) for d in differences))


def algorithm_1(network: Network, x: Tensor, labels: Tensor, v: Tensor, tau: float, same_input: bool = False) -> Tensor:
    """Lines 5 to 8 of Algorithm 1 on one batch X_B (k, C, H, W) with perturbations v: the sum over i and j."""
    loss = x.new_zeros(())
    for i in range(len(x)):
        for j in range(len(x)):
            if j != i or same_input:
                loss = loss + ibp_loss(network, x[i] + v[j], int(labels[i]), tau)
    return loss
