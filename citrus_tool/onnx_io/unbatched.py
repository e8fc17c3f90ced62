"""Small networks without a batch axis, for `citrus verify`: the whole input tensor is one sample, a flat vector.

Nodes that are affine in what depends on the input (reshapes, selections, sums, products with constants, convolutions)
are run on the zero tensor and on every unit tensor, in float64, which gives their matrix; activations act entry by
entry. Nothing here can be trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from citrus_tool.choices.operators import AFFINE
from citrus_tool.errors import UnsupportedNetworkError
from citrus_tool.network import INPUT, Concat, GraphBuilder, Network
from citrus_tool.onnx_io.contract import InputContract
from citrus_tool.onnx_io.model import OnnxModel
from citrus_tool.onnx_io.onnx_file import OLDEST_OPSET, OnnxFile, evaluated, load, named, upgraded
from citrus_tool.onnx_io.runner import OnnxRunner, require_parity

TOGETHER: Final = frozenset({"Add", "Concat", "Sub", "Sum"})
"""Those of AFFINE that are affine in all operands together, not in one alone."""
FLOATS: Final = (TensorProto.FLOAT, TensorProto.DOUBLE)
MOST_RUNS: Final = 4096
"""Largest input of an affine node, in entries: the node is run once for each, which takes seconds at this size."""
MOST_ENTRIES: Final = 1 << 22
"""Largest matrix of an affine node, in entries (32 MiB of float64)."""


@dataclass(frozen=True, kw_only=True)
class _FlatNode:
    """A node of the network, a flat vector, and the tensor's shape in the file."""

    name: str
    shape: tuple[int, ...]


_Value = _FlatNode | NDArray[Any]


class _RefusedError(Exception):
    """Why a node cannot be read."""


def read_whole(path: Path) -> OnnxModel:
    """Reads a file whose input need have no batch axis; the network maps the flat input to the flat output.

    Raises InputFileError, UnsupportedNetworkError, CheckFailedError as `onnx_io.read`.
    """
    source = load(path, whole=True)
    entries = (math.prod(source.input_shape),)
    contract = InputContract(
        mean=(0.0,), std=(1.0,), layout="flat", file_shape=source.input_shape, pixel_shape=entries, batch=0
    )
    network = _network(source)
    found = require_parity(network, OnnxRunner(source, contract), path)
    return OnnxModel(
        path=path,
        sha256=source.sha256,
        proto=source.proto,
        network=network,
        contract=contract,
        bindings=(),
        opset=source.opset,
        parity=found.worst,
    )


def _network(source: OnnxFile) -> Network:
    where = str(source.path)
    graph = upgraded(named(source.proto), source.opset, where).graph
    opset = max(source.opset, OLDEST_OPSET)
    builder = GraphBuilder((math.prod(source.input_shape),))
    values: dict[str, _Value] = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    values[source.input_name] = _FlatNode(name=INPUT, shape=source.input_shape)
    for node in graph.node:
        try:
            outputs = _apply(builder, node, [values[name] for name in node.input if name], opset)
        except _RefusedError as refusal:
            raise UnsupportedNetworkError(
                f"{where}: node {node.name!r} (operator {node.op_type}, opset {source.opset}) is not supported in a "
                f"network without a batch axis: {refusal}. Re-export the network without it."
            ) from None
        values |= dict(zip(node.output, outputs, strict=False))
    output = values[source.output_name]
    if not isinstance(output, _FlatNode) or output.name == INPUT:
        raise UnsupportedNetworkError(f"{where}: the output does not depend on the input.")
    return builder.build(output.name).eval()


def _apply(builder: GraphBuilder, node: onnx.NodeProto, inputs: Sequence[_Value], opset: int) -> list[_Value]:
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    active = [value for value in inputs if isinstance(value, _FlatNode)]
    if node.domain not in ("", "ai.onnx"):
        raise _RefusedError(f"it belongs to the operator set {node.domain!r}")
    if not active:
        return list(_run(node, dict(zip(_names(node), inputs, strict=True)), opset))
    first = active[0]
    if node.op_type == "Shape":
        return [np.array(first.shape, dtype=np.int64)[attributes.get("start", 0) : attributes.get("end")]]
    layer = _entrywise(node.op_type, attributes)
    if layer is not None:
        return [_FlatNode(name=builder.add(layer, first.name), shape=first.shape)]
    distinct = list({value.name: value for value in active}.values())
    if node.op_type not in AFFINE or (len(active) > 1 and node.op_type not in TOGETHER):
        raise _RefusedError("it is not affine in the network's input")
    if node.op_type == "Div" and inputs[0] is not first:
        raise _RefusedError("it divides by an activation")
    if node.op_type == "Cast" and attributes["to"] not in FLOATS:
        raise _RefusedError("it rounds")
    return _affine(builder, node, inputs, distinct, opset)


def _entrywise(operator: str, attributes: Mapping[str, Any]) -> nn.Module | None:
    """The layer of an activation function, or None."""
    if operator == "LeakyRelu":
        return nn.LeakyReLU(float(attributes.get("alpha", 0.01)))
    layers: Mapping[str, type[nn.Module]] = {"Relu": nn.ReLU, "Sigmoid": nn.Sigmoid, "Tanh": nn.Tanh}
    return layers[operator]() if operator in layers else None


def _affine(
    builder: GraphBuilder, node: onnx.NodeProto, inputs: Sequence[_Value], active: Sequence[_FlatNode], opset: int
) -> list[_Value]:
    """The node's outputs as Linear layers on its active inputs, joined."""
    sizes = [math.prod(value.shape) for value in active]
    starts = np.cumsum([0, *sizes])
    total = int(starts[-1])
    if total > MOST_RUNS:
        raise _RefusedError(f"its input has {total} entries, more than {MOST_RUNS}")

    def run(x: NDArray[np.float64]) -> list[NDArray[np.float64]]:
        places = zip(active, pairwise(starts), strict=True)
        place = {value.name: x[first:last].reshape(value.shape) for value, (first, last) in places}
        feeds = [
            place[v.name] if isinstance(v, _FlatNode) else v.astype(np.float64) if v.dtype.kind == "f" else v
            for v in inputs
        ]
        return [np.asarray(y, dtype=np.float64) for y in _run(node, dict(zip(_names(node), feeds, strict=True)), opset)]

    zero = run(np.zeros(total))
    if total * max(y.size for y in zero) > MOST_ENTRIES:
        raise _RefusedError("its matrix is too large")
    columns = [run(unit) for unit in np.eye(total)]
    probe = np.random.default_rng(0).uniform(-2, 2, total)
    joined = active[0].name if len(active) == 1 else builder.add(Concat(0), *(value.name for value in active))
    found: list[_Value] = []
    for number, (offset, value) in enumerate(zip(zero, run(probe), strict=True)):
        matrix = np.stack([column[number].ravel() - offset.ravel() for column in columns], axis=1)
        expected = matrix @ probe + offset.ravel()
        if not np.allclose(expected, value.ravel(), rtol=1e-9, atol=1e-9):
            raise _RefusedError("it is not affine in the network's input")
        layer = nn.Linear(total, offset.size)
        layer.weight = nn.Parameter(torch.from_numpy(matrix.astype(np.float32)), requires_grad=False)
        layer.bias = nn.Parameter(torch.from_numpy(offset.ravel().astype(np.float32)), requires_grad=False)
        found.append(_FlatNode(name=builder.add(layer, joined), shape=offset.shape))
    return found


def _names(node: onnx.NodeProto) -> list[str]:
    return [name for name in node.input if name]


def _run(node: onnx.NodeProto, feeds: Mapping[str, Any], opset: int) -> list[NDArray[Any]]:
    """The node alone, by ONNX's reference implementation, in the types of its inputs."""
    given = onnx.NodeProto()
    given.CopyFrom(node)
    for attribute in given.attribute:  # float64 stays float64
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT and _is_double(feeds):
            attribute.i = TensorProto.DOUBLE
    try:
        return evaluated(given, feeds, opset)
    except Exception as error:  # the evaluator raises whatever numpy does
        raise _RefusedError(f"ONNX's reference implementation cannot run it ({error})") from None


def _is_double(feeds: Mapping[str, Any]) -> bool:
    return any(np.asarray(value).dtype == np.float64 for value in feeds.values())
