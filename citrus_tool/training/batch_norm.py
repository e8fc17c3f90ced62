"""Batch norm for a network that was imported without: put in for training, folded back into its weights afterwards.

Shi et al. 2021, section 3.3, for what batch norm does to certified training. Files from elsewhere have theirs folded
into the weights, so it is put in again as the identity: its statistics are those of the data, its scale and shift undo
them, and the network computes what it did.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from citrus_tool.network import INPUT, GraphBuilder, Network, Node, walk
from citrus_tool.training.batch_norm_statistics import CLEAN, BatchNorm, held

Weighted = nn.Conv2d | nn.Linear


def insert_batch_norm(network: Network, batches: Iterable[Tensor]) -> Network:
    """The same function, up to rounding, with a BatchNorm behind every Conv2d and Linear that feeds one ReLU alone.

    Layers that several nodes share are left alone, and so are those without a bias, which could not be folded back.

    Args:
        batches: inputs (n, C, H, W) of equal weight, whose statistics the new layers hold; all are read.
    """
    places = _places(network)
    norms = _identities(network, places, batches)
    builder, names = GraphBuilder(network.input_shape), {INPUT: INPUT}
    layers = {id(layer): copy.deepcopy(layer) for layer in {id(n.layer): n.layer for n in network.nodes}.values()}
    for node in network.nodes:
        names[node.name] = builder.add(layers[id(node.layer)], *(names[name] for name in node.inputs))
        if node.name in norms:
            names[node.name] = builder.add(norms[node.name], names[node.name])
    return builder.build(names[network.output_name]).train(network.training)


def restore_layers(folded: Network, original: Network) -> Network:
    """A copy of `original` with the weights of `folded`, the same network after batch norm was put in and folded.

    The two have the same weight layers in the same order; graphs, names and shared layers are the original's.
    """
    result = copy.deepcopy(original)
    with torch.no_grad():
        for target, source in zip(_weighted(result), _weighted(folded), strict=True):
            target.weight.copy_(source.weight)
            if target.bias is not None and source.bias is not None:
                target.bias.copy_(source.bias)
    return result


def _weighted(network: Network) -> list[Weighted]:
    return [node.layer for node in network.nodes if isinstance(node.layer, nn.Conv2d | nn.Linear)]


def _places(network: Network) -> dict[str, Node]:
    """The nodes that get a BatchNorm, by name."""
    users = Counter(name for node in network.nodes for name in node.inputs)
    shared = Counter(id(node.layer) for node in network.nodes)
    before_relu = {node.inputs[0] for node in network.nodes if isinstance(node.layer, nn.ReLU)}
    return {
        node.name: node
        for node in network.nodes
        if isinstance(node.layer, nn.Conv2d | nn.Linear)
        and node.layer.bias is not None
        and (shared[id(node.layer)], users[node.name]) == (1, 1)
        and node.name in before_relu
        and (isinstance(node.layer, nn.Conv2d) or len(node.shape) == 1)
    }


def _identities(network: Network, places: dict[str, Node], batches: Iterable[Tensor]) -> dict[str, BatchNorm]:
    """A BatchNorm for each place with the batches' statistics, and the scale and shift that make it the identity."""
    sums: dict[str, Tensor] = {}
    count = 0
    with torch.no_grad():
        for x in batches:
            values: dict[str, Tensor] = {}
            walk(network, CLEAN, x, record=values)
            count += 1
            for name in places:
                z = values[name].double().transpose(0, 1).flatten(1)
                part = torch.stack([z.mean(1), z.square().mean(1)])
                sums[name] = sums[name] + part if name in sums else part
    norms: dict[str, BatchNorm] = {}
    for name, node in places.items():
        mean, square = sums[name] / count
        make = nn.BatchNorm2d if isinstance(node.layer, nn.Conv2d) else nn.BatchNorm1d
        weight = node.layer.weight
        assert isinstance(weight, Tensor)
        norm = make(len(mean), device=weight.device, dtype=weight.dtype)
        with torch.no_grad():
            held_mean, held_variance = held(norm)
            held_mean.copy_(mean)
            held_variance.copy_((square - mean.square()).clamp_min(0))
            norm.weight.copy_((held_variance + norm.eps).sqrt())
            norm.bias.copy_(held_mean)
        norms[name] = norm
    return norms
