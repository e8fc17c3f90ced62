"""f(clip(x + u, 0, 1)) as a network: an exact clip layer in front."""

from __future__ import annotations

import torch
from torch import nn

from citrus_tool.network import INPUT, Affine, GraphBuilder, Network
from citrus_tool.threat.threat import Threat


def perturbed_network(network: Network, threat: Threat) -> Network:
    """The network as a function of x + u: with the clip layer in front where the threat has one."""
    return clipped(network) if threat.clip else network


def clipped(network: Network) -> Network:
    """f(clip(z, 0, 1)) of z: the layers 1 - relu(1 - relu(z)) in front of `network`, whose layers are shared.

    In real arithmetic this is the clip exactly; in float64 it is off by at most 2^-53.
    """
    builder = GraphBuilder(network.input_shape)
    parameter = next((t for t in network.state_dict().values() if t.is_floating_point()), torch.zeros(()))
    one = torch.ones((1,) * len(network.input_shape), dtype=parameter.dtype, device=parameter.device)
    flip = Affine(-one, one, exact=True)
    builder.add(nn.ReLU(), name="clip_low")
    builder.add(flip, name="clip_flip")
    builder.add(nn.ReLU(), name="clip_high")
    names = {INPUT: builder.add(flip)}
    for node in network.nodes:
        names[node.name] = builder.add(node.layer, *(names[name] for name in node.inputs), name=node.name)
    return builder.build(names[network.output_name], like=network).train(network.training)
