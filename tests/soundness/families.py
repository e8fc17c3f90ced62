"""Families of tiny networks, each made from its seed."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import onnx
import torch
from torch import nn

from citrus_tool.network import (
    Affine,
    GraphBuilder,
    MatMul,
    Multiply,
    Network,
    Pointwise,
    Reshape,
    Select,
    Transpose,
    chain,
)
from citrus_tool.onnx_io import InputContract, OnnxModel
from citrus_tool.onnx_io.export_graph import to_proto
from tests.certification.toys import CLASSES, SHAPE, as_onnx

BENT = ("exp", "square", "cube", "erf", "softplus", "elu", "silu", "gelu", "gelu_tanh", "hardswish", "mish")
"""Functions of any number; the rest of `FUNCTIONS` gets what softplus has made positive."""
POSITIVE = ("log", "sqrt", "reciprocal", "rsqrt")


def smooth(seed: int) -> Network:
    """Two hidden layers with sigmoid, tanh or leaky ReLU."""
    torch.manual_seed(seed)
    kinds: list[nn.Module] = [nn.Sigmoid(), nn.Tanh(), nn.LeakyReLU(0.1)]
    layers = [nn.Linear(4, 5), kinds[seed % 3], nn.Linear(5, 5), kinds[(seed + 1) % 3], nn.Linear(5, CLASSES)]
    return chain([Reshape((4,)), *layers], SHAPE).eval()


def pooled(seed: int) -> Network:
    """Normalisation, convolution, batch norm, max or average pool."""
    torch.manual_seed(seed)
    norm = nn.BatchNorm2d(3)
    nn.init.normal_(norm.weight)
    pool: nn.Module = nn.MaxPool2d(2) if seed % 2 else nn.AvgPool2d(2)
    front = Affine(torch.full((1, 1, 1), 3.0), torch.full((1, 1, 1), -1.5))
    layers = [front, nn.Conv2d(1, 3, 3, padding=1), norm, nn.ReLU(), pool, Reshape((3,)), nn.Linear(3, CLASSES)]
    return chain(layers, SHAPE).eval()


def deep(seed: int) -> Network:
    """Two hidden layers of 12, whose certificates need splits."""
    torch.manual_seed(seed)
    layers = [Reshape((4,)), nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, CLASSES)]
    return _centred(chain(layers, SHAPE), 1.5)


def strided(seed: int) -> Network:
    """A convolution whose strides differ, with a map (2, 2) either way round."""
    torch.manual_seed(seed)
    convolution = nn.Conv2d(1, 3, 3, stride=(2, 3), padding=2)
    return _centred(chain([convolution, nn.ReLU(), Reshape((12,)), nn.Linear(12, CLASSES)], SHAPE), 1.0)


def _centred(network: Network, scale: float) -> Network:
    """The network with weights times `scale` and logits around 0: every class occurs."""
    weighted = [node.layer for node in network.nodes if isinstance(node.layer, nn.Linear | nn.Conv2d)]
    with torch.no_grad():
        for layer in weighted:
            layer.weight *= scale
        x = torch.rand(500, *SHAPE, generator=torch.Generator().manual_seed(0))
        weighted[-1].bias -= network(x).mean(dim=0)  # type: ignore[operator]
    return network.eval()


def gated(seed: int) -> Network:
    """Entries that are picked, repeated and dropped; then a gate, a product of matrices, or functions of one number."""
    torch.manual_seed(seed)
    choice, builder = random.Random(seed), GraphBuilder(SHAPE)
    picked = torch.randint(-1, 4, (6,))
    start = builder.add(Select(picked))
    builder.add(nn.Linear(6, 6), start)
    kind = choice.choice(["gate", "matrices", "chain"])
    if kind == "chain":
        _bend(builder, choice)
        builder.add(nn.Linear(6, 6))
        hidden = _bend(builder, choice)
    elif kind == "gate":
        values = _bend(builder, choice)
        builder.add(nn.Linear(6, 6), start)
        hidden = builder.add(Multiply(), values, _bend(builder, choice))
    else:
        left = builder.add(Reshape((3, 2)))
        _bend(builder, choice)
        square = builder.add(MatMul(), left, builder.add(Transpose((1, 0))))
        builder.add(MatMul(), square, left)
        hidden = builder.add(Reshape((6,)))
    builder.add(nn.Linear(6, CLASSES), hidden)
    return _centred(builder.build(), choice.choice([1.0, 1.5]))


def _bend(builder: GraphBuilder, choice: random.Random) -> str:
    """Adds a ReLU or a function of one number; the node's name."""
    kind = choice.choice(["relu", "relu", *BENT, *POSITIVE])
    if kind == "relu":
        return builder.add(nn.ReLU())
    if kind in POSITIVE:
        builder.add(Pointwise("softplus"))
        builder.add(Affine(torch.ones(1), torch.full((1,), 0.1)))
    return builder.add(Pointwise(kind))


def as_model(network: Network, folder: Path, name: str) -> OnnxModel:
    """The network as a file, read; with layers whose operators are not read yet, as a file and the network itself."""
    if not any(isinstance(node.layer, Select | Pointwise | Multiply | MatMul) for node in network.nodes):
        return as_onnx(network, folder, name)
    path, proto = folder / name, to_proto(network, input_name="input", output_name="output", opset=13, ir_version=8)
    onnx.checker.check_model(proto, full_check=True)
    path.write_bytes(proto.SerializeToString())
    shape = network.input_shape
    contract = InputContract(mean=(0.0,), std=(1.0,), layout="nchw", file_shape=shape, pixel_shape=shape)
    return OnnxModel(
        path=path,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        proto=proto,
        network=network,
        contract=contract,
        bindings=(),
        opset=13,
        parity=0.0,
    )
