"""Tiny classifiers and data sets for certification tests."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from citrus_tool import onnx_io
from citrus_tool.data import Dataset
from citrus_tool.network import Add, GraphBuilder, Network, Reshape, chain
from citrus_tool.onnx_io import OnnxModel

SHAPE = (1, 2, 2)
CLASSES = 3


def tiny_chain(seed: int, *, hidden: int = 6) -> Network:
    torch.manual_seed(seed)
    return _balanced(chain([Reshape((4,)), nn.Linear(4, hidden), nn.ReLU(), nn.Linear(hidden, CLASSES)], SHAPE))


def tiny_residual(seed: int, *, channels: int = 1) -> Network:
    torch.manual_seed(seed)
    builder = GraphBuilder(SHAPE)
    first = builder.add(nn.Conv2d(1, channels, 3, padding=1))
    builder.add(nn.ReLU())
    branch = builder.add(nn.Conv2d(channels, channels, 3, padding=1))
    builder.add(Add(), branch, first)
    builder.add(nn.ReLU())
    builder.add(Reshape((4 * channels,)))
    builder.add(nn.Linear(4 * channels, CLASSES))
    return _balanced(builder.build())


def _balanced(network: Network) -> Network:
    """The network with its first layer centred on mid-grey and its logits centred: every class occurs."""
    weighted = [node.layer for node in network.nodes if isinstance(node.layer, nn.Linear | nn.Conv2d)]
    with torch.no_grad():
        first, last = weighted[0], weighted[-1]
        assert first.bias is not None
        assert last.bias is not None
        first.bias.copy_(-0.5 * first.weight.flatten(1).sum(dim=1))
        last.bias.sub_(network(torch.rand(500, *SHAPE, generator=torch.Generator().manual_seed(0))).mean(dim=0))
    return network.eval()


def data_for(network: Network, count: int, seed: int, *, noise: float = 0.1) -> Dataset:
    """Random images; labels are the network's own but for a share of `noise`."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, *network.input_shape, generator=generator)
    with torch.no_grad():
        labels = network(images).argmax(dim=1)
    wrong = torch.rand(count, generator=generator) < noise
    labels = torch.where(wrong, (labels + 1) % network.num_classes, labels)
    return Dataset(name="toy", split="test", images=images, labels=labels, num_classes=network.num_classes)


def as_onnx(network: Network, folder: Path, name: str = "toy.onnx") -> OnnxModel:
    return onnx_io.export(network, folder / name, metadata={})
