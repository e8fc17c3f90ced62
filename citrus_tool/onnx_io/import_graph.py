"""ONNX graph -> Network: a pass over the nodes, constants evaluated, each other operator by its rule (operators.py)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from citrus_tool.errors import UnsupportedNetworkError
from citrus_tool.network import INPUT, GraphBuilder, Network, Reshape
from citrus_tool.onnx_io.contract import InputContract
from citrus_tool.onnx_io.lowering import (
    Activation,
    Binding,
    Call,
    Constant,
    Lowering,
    RefusedNodeError,
    Value,
)
from citrus_tool.onnx_io.onnx_file import OLDEST_OPSET, evaluated
from citrus_tool.onnx_io.operators import RULES, by_onnx2torch

FOLDABLE = frozenset(
    {
        "Add",
        "And",
        "Cast",
        "Ceil",
        "Concat",
        "ConstantOfShape",
        "Div",
        "Equal",
        "Expand",
        "Floor",
        "Gather",
        "Greater",
        "Identity",
        "Less",
        "Max",
        "Min",
        "Mul",
        "Neg",
        "Not",
        "Or",
        "Pow",
        "Range",
        "Reciprocal",
        "ReduceProd",
        "Reshape",
        "Slice",
        "Sqrt",
        "Squeeze",
        "Sub",
        "Tile",
        "Transpose",
        "Unsqueeze",
        "Where",
    }
)
"""Operators that are evaluated at import when all their inputs are constants (mostly arithmetic on shapes)."""


@dataclass(frozen=True, kw_only=True)
class NodeRecord:
    """What became of one ONNX node.

    Attributes:
        layers: canonical layers that it gave, for readers; empty for constants and dropped nodes.
        parameters: trainable entries first met at this node.
        shape: per-sample output shape, None where it is unknown or no activation.
        status: "constant" was evaluated at import, "unused" does not reach the output, "unchecked" follows an
            unsupported node.
        reason: why it is unsupported, or a remark.
    """

    name: str
    operator: str
    status: Literal["supported", "unsupported", "unchecked", "constant", "unused"]
    layers: tuple[str, ...] = ()
    parameters: int = 0
    shape: tuple[int, ...] | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """`network` and `bindings` of a graph, or None where a node was refused; one record per node of the graph."""

    network: Network | None
    bindings: tuple[Binding, ...]
    records: tuple[NodeRecord, ...]
    problem: UnsupportedNetworkError | None


def lower(
    graph: onnx.GraphProto,
    contract: InputContract,
    *,
    input_name: str,
    where: str,
    opset: int,
    tensors: Iterable[str],
    classifier: bool = True,
) -> Lowered:
    """Reads `graph` (opset 13 or later, every node named) as a Network from pixel space to logits.

    Args:
        where, opset: file and its own opset, for messages.
        tensors: names of the original file's constants; only these can be trained, as only these can be written.
        classifier: the output must be a vector of logits; else it may have any shape, and is flattened.

    A node that cannot be read ends up in `problem` and in its record; the nodes behind it are "unchecked".
    """
    live = _live_nodes(graph)
    consumers = Counter(name for node, used in zip(graph.node, live, strict=True) if used for name in node.input)
    consumers.update(value.name for value in graph.output)
    lowering = Lowering(builder=GraphBuilder(contract.pixel_shape), opset=max(opset, OLDEST_OPSET), consumers=consumers)
    known = set(tensors)
    values: dict[str, Value] = {
        t.name: Constant(value=numpy_helper.to_array(t), tensor=t.name if t.name in known else None)
        for t in graph.initializer
    }
    front = Activation(name=INPUT, shape=contract.pixel_shape)
    for name, layer in contract.layers():
        front = lowering.emit(name, layer, front)
    values[input_name] = front
    records: list[NodeRecord] = []
    created: dict[int, list[nn.Parameter]] = {}  # by position in `records`
    problem: UnsupportedNetworkError | None = None
    for node, used in zip(graph.node, live, strict=True):
        if not used:
            records.append(NodeRecord(name=node.name, operator=node.op_type, status="unused"))
            continue
        if any(name and name not in values for name in node.input):
            records.append(NodeRecord(name=node.name, operator=node.op_type, status="unchecked"))
            continue
        call = Call(
            name=node.name,
            operator=node.op_type,
            attributes={a.name: helper.get_attribute_value(a) for a in node.attribute},
            inputs=tuple(values.get(name) for name in node.input),
            input_names=tuple(node.input),
            output_names=tuple(node.output),
        )
        lowering.emitted, lowering.created = [], []
        try:
            outputs = _apply(lowering, node, call, known)
        except RefusedNodeError as refusal:
            reason = f"{refusal}. {refusal.advice}"
            problem = problem or UnsupportedNetworkError(
                f"{where}: node {node.name!r} (operator {node.op_type}, opset {opset}) is not supported: {reason}"
            )
            records.append(NodeRecord(name=node.name, operator=node.op_type, status="unsupported", reason=reason))
            continue
        values |= dict(zip(node.output, outputs, strict=False))
        first = outputs[0]
        created[len(records)] = lowering.created
        records.append(
            NodeRecord(
                name=node.name,
                operator=node.op_type,
                status="supported" if isinstance(first, Activation) else "constant",
                layers=tuple(lowering.emitted),
                shape=first.shape if isinstance(first, Activation) else None,
            )
        )
    network: Network | None = None
    bindings: tuple[Binding, ...] = ()
    if problem is None:
        try:
            network, bindings = _close(lowering, values.get(graph.output[0].name), where, classifier)
        except UnsupportedNetworkError as error:
            problem = error
    final = tuple(_counted(record, created.get(i, [])) for i, record in enumerate(records))
    return Lowered(network=network, bindings=bindings, records=final, problem=problem)


def _counted(record: NodeRecord, weights: list[nn.Parameter]) -> NodeRecord:
    frozen = any(not p.requires_grad for p in weights)
    return replace(
        record,
        parameters=sum(p.numel() for p in weights if p.requires_grad),
        reason="weights frozen: computed in the file, or used in another role too" if frozen else record.reason,
    )


def _close(
    lowering: Lowering, output: Value | None, where: str, classifier: bool
) -> tuple[Network, tuple[Binding, ...]]:
    if not isinstance(output, Activation) or output.name == INPUT:
        raise UnsupportedNetworkError(f"{where}: the output does not depend on the input; this is no classifier.")
    classes = math.prod(output.shape)
    if classifier and (classes < 2 or sum(s != 1 for s in output.shape) > 1):
        raise UnsupportedNetworkError(
            f"{where}: the output has shape {output.shape} per input; a classifier gives a vector of 2 or more logits."
        )
    if len(output.shape) != 1:
        output = lowering.emit("logits", Reshape((classes,)), output)
    return lowering.network(output)


def _live_nodes(graph: onnx.GraphProto) -> list[bool]:
    """For every node, whether the output depends on it."""
    wanted = {value.name for value in graph.output}
    live = []
    for node in reversed(graph.node):
        used = any(name in wanted for name in node.output)
        if used:
            wanted.update(node.input)
        live.append(used)
    return live[::-1]


def _apply(lowering: Lowering, node: onnx.NodeProto, call: Call, known: set[str]) -> tuple[Value, ...]:
    if node.domain not in ("", "ai.onnx"):
        raise RefusedNodeError(f"it belongs to the operator set {node.domain!r}")
    if call.operator == "Constant":
        name = node.output[0]
        tensor = name if name in known and "value" in call.attributes else None
        return (Constant(value=_constant_value(call.attributes), tensor=tensor),)
    if call.operator == "Shape" and isinstance(call.inputs[0], Activation):
        whole = np.array([1, *call.inputs[0].shape], dtype=np.int64)
        return (Constant(value=whole[call.attributes.get("start", 0) : call.attributes.get("end", len(whole))]),)
    if call.operator in FOLDABLE and call.inputs and all(v is None or isinstance(v, Constant) for v in call.inputs):
        return _fold(lowering.opset, node, call)
    result = RULES.get(call.operator, by_onnx2torch)(lowering, call)
    return result if isinstance(result, tuple) else (result,)


def _constant_value(attributes: Mapping[str, Any]) -> NDArray[Any]:
    kind, value = next(iter(attributes.items()), ("nothing", None))
    if isinstance(value, TensorProto):
        return numpy_helper.to_array(value)
    if kind in ("value_float", "value_floats"):
        return np.asarray(value, dtype=np.float32)
    if kind in ("value_int", "value_ints"):
        return np.asarray(value, dtype=np.int64)
    raise RefusedNodeError(f"it holds {kind}; citrus reads constant tensors, floats and integers")


def _fold(opset: int, node: onnx.NodeProto, call: Call) -> tuple[Value, ...]:
    first = call.inputs[0]
    if isinstance(first, Constant) and call.operator == "Identity":
        return (first,)
    if isinstance(first, Constant) and call.operator == "Transpose" and first.value.ndim == 2:
        turned = tuple(call.attributes.get("perm", (1, 0))) == (1, 0)
        value = np.ascontiguousarray(first.value.T) if turned else first.value
        return (Constant(value=value, tensor=first.tensor, transposed=first.transposed ^ turned),)
    feeds = {n: v.value for n, v in zip(call.input_names, call.inputs, strict=True) if isinstance(v, Constant)}
    try:
        return tuple(Constant(value=result) for result in evaluated(node, feeds, opset))
    except Exception as error:  # the evaluator raises whatever numpy does
        raise RefusedNodeError(f"its constant inputs cannot be evaluated ({error})") from None
