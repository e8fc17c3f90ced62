"""What of an ONNX file the checker reads: operator by operator, with every attribute whose meaning it knows.

Anything else is refused, so that nothing is read otherwise than a runtime reads it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx import AttributeProto, helper

from citrus_tool.errors import UnsupportedNetworkError


@dataclass(frozen=True, kw_only=True)
class Form:
    """How an operator is written: the fewest and most inputs, and the attributes that are known."""

    least: int
    most: int
    attributes: frozenset[str]


def _form(least: int, most: int, attributes: str = "") -> Form:
    return Form(least=least, most=most, attributes=frozenset(attributes.split()))


WINDOW: Final = "auto_pad dilations kernel_shape pads strides"
READ: Final[Mapping[str, Form]] = {
    "Reshape": _form(2, 2, "allowzero"),
    "Flatten": _form(1, 1, "axis"),
    "Transpose": _form(1, 1, "perm"),
    "Squeeze": _form(1, 2, "axes"),
    "Unsqueeze": _form(1, 2, "axes"),
    "Slice": _form(1, 5, "axes starts ends"),
    "Gather": _form(2, 2, "axis"),
    "Identity": _form(1, 1),
    "Dropout": _form(1, 3, "ratio seed"),
    "Shape": _form(1, 1),
    "Add": _form(2, 2),
    "Sub": _form(2, 2),
    "Mul": _form(2, 2),
    "Div": _form(2, 2),
    "Sum": _form(1, 64),
    "Concat": _form(1, 64, "axis"),
    "Relu": _form(1, 1),
    "LeakyRelu": _form(1, 1, "alpha"),
    "Neg": _form(1, 1),
    "Conv": _form(2, 3, f"{WINDOW} group"),
    "AveragePool": _form(1, 1, f"{WINDOW} ceil_mode count_include_pad"),
    "GlobalAveragePool": _form(1, 1),
    "Pad": _form(1, 3, "mode pads value"),
    "BatchNormalization": _form(5, 5, "epsilon momentum training_mode"),
    "Gemm": _form(2, 3, "alpha beta transA transB"),
    "MatMul": _form(2, 2),
}
"""Operators of the default domain that are read where an input depends on the network's."""
MOVES: Final = {"Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Gather", "Identity", "Dropout"}
"""Operators that only move entries (the data is their first input)."""
FOLDED: Final = {
    *MOVES - {"Dropout"},
    *("Constant", "ConstantOfShape", "Shape", "Concat", "Expand", "Tile", "Range", "Cast", "Where", "ReduceProd"),
    *("Add", "Sub", "Mul", "Div", "Neg", "Sqrt", "Floor", "Ceil", "Equal", "Less", "Greater", "Not", "And", "Or"),
}
"""Operators that are evaluated where all their inputs are constants: each has one result, whoever computes it."""
OPSETS: Final = range(7, 24)
"""Versions of the operator set whose meaning READ states: from numpy's broadcasting (7) on."""
TYPES: Final = ("float32", "int64", "int32", "bool")
"""Types that constants may have; those of arithmetic are float32."""
SIMPLE: Final = (
    *(AttributeProto.FLOAT, AttributeProto.INT, AttributeProto.STRING, AttributeProto.TENSOR),
    *(AttributeProto.FLOATS, AttributeProto.INTS),
)
"""Kinds of attributes that hold a value: no graphs, no references to a function's."""


def opened(path: Path) -> tuple[onnx.GraphProto, Sequence[Any]]:
    """The file's graph and operator sets; raises UnsupportedNetworkError for whatever else a file may hold."""
    try:
        model = onnx.load(path, load_external_data=False)
    except (OSError, ValueError, DecodeError) as error:
        raise UnsupportedNetworkError(f"{path}: is no ONNX file ({str(error).splitlines()[0]}).") from None
    graph = model.graph
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in graph.initializer):
        raise UnsupportedNetworkError(
            f"{path}: weights lie in other files, which no digest covers; save them in the file."
        )
    default = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if len(default) != 1 or default[0] not in OPSETS:
        raise UnsupportedNetworkError(
            f"{path}: has operator set {default}; the checker reads {OPSETS[0]} to {OPSETS[-1]}."
        )
    if model.functions or graph.sparse_initializer or model.training_info:
        raise UnsupportedNetworkError(
            f"{path}: holds functions, sparse constants or training graphs, which none reads."
        )
    given = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in given]
    kinds = {value.type.tensor_type.elem_type for value in (*inputs, *graph.output)}
    if len(inputs) != 1 or len(graph.output) != 1 or kinds != {onnx.TensorProto.FLOAT}:
        raise UnsupportedNetworkError(f"{path}: the checker reads networks with one float32 input and one such output.")
    if len(given) != len(graph.initializer):
        raise UnsupportedNetworkError(f"{path}: two constants have one name.")
    return graph, model.opset_import


def operands_of(node: onnx.NodeProto) -> list[str]:
    """The names of the node's inputs, without empty ones at the end."""
    names = list(node.input)
    while names and not names[-1]:
        names.pop()
    return names


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """The node's attributes; raises UnsupportedNetworkError for other kinds than values, and other domains."""
    if node.domain not in ("", "ai.onnx"):
        raise UnsupportedNetworkError(f"it belongs to the operator set {node.domain!r}, which is not read.")
    for attribute in node.attribute:
        if attribute.type not in SIMPLE or attribute.ref_attr_name:
            raise UnsupportedNetworkError(f"its attribute {attribute.name!r} is of a kind that is not read.")
    found = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if len(found) != len(node.attribute):
        raise UnsupportedNetworkError("it has an attribute twice.")
    return found


def require_folded(node: onnx.NodeProto, names: Sequence[str]) -> None:
    """Raises UnsupportedNetworkError unless the node, whose inputs are constants, has one result that all agree on."""
    if node.op_type not in FOLDED or (not names and node.op_type != "Constant") or len(node.output) != 1:
        raise UnsupportedNetworkError("it makes a constant in a way that the checker does not know.")


def require_read(node: onnx.NodeProto, names: Sequence[str], attributes: Mapping[str, Any]) -> None:
    """Raises UnsupportedNetworkError unless the node is written in a form of READ."""
    form = READ.get(node.op_type)
    if form is None:
        raise UnsupportedNetworkError("it is not read by the checker, which reads affine layers and ReLUs.")
    if not form.least <= len(names) <= form.most or ("" in names and node.op_type != "Slice"):
        raise UnsupportedNetworkError(
            f"it has {len(names)} inputs, or leaves one out, which the checker does not read."
        )
    if odd := sorted(set(attributes) - form.attributes):
        raise UnsupportedNetworkError(f"the checker does not know its attribute {odd[0]!r}.")
    if not node.output or not node.output[0] or (any(node.output[1:]) and node.op_type != "Dropout"):
        raise UnsupportedNetworkError("it has more outputs than the checker knows, or none.")


def require_constant(name: str, value: NDArray[Any]) -> NDArray[Any]:
    """The constant (any shape); raises UnsupportedNetworkError for other types than TYPES and numbers that are none."""
    if value.dtype.name not in TYPES or not bool(np.isfinite(value).all()):
        raise UnsupportedNetworkError(f"the constant {name!r} has type {value.dtype}, or is not finite.")
    return value
