"""What of an ONNX file the checker reads: operator by operator, with every attribute whose meaning it knows.

Anything else is refused, so that nothing is read otherwise than a runtime reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
EXACT: Final[Mapping[str, Callable[..., NDArray[Any]]]] = {
    **{"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide, "Neg": np.negative},
    **{"Sqrt": np.sqrt, "Equal": np.equal, "Cast": np.copy},
}
"""What is computed of constants, in float64: a whole number, a truth or a cast has to come out as it does there."""
FOLDED: Final = {
    *(MOVES - {"Dropout"}),
    *("Constant", "ConstantOfShape", "Shape", "Concat", "Expand", "Where"),
    *EXACT,
}
"""Operators that are evaluated where all their inputs are constants."""
OPSETS: Final = range(7, 24)
"""Versions of the operator set whose meaning READ states: from numpy's broadcasting (7) on."""
TYPES: Final = ("float32", "int64", "int32", "bool")
"""Types that constants may have; those of arithmetic are float32."""
SMALLEST: Final = 2.0**-60
"""The least divisor and radicand: flushing smaller numbers to zero might change a quotient by more than is counted."""
ENTRIES: Final = 2**27
"""Entries of a tensor or a matrix that are read: 2 GB with their places."""
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
        raise UnsupportedNetworkError(f"{path}: is no ONNX file ({first_line(error)}).") from None
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
    batch = list(inputs[0].type.tensor_type.shape.dim)[:1]
    if batch and batch[0].HasField("dim_value") and batch[0].dim_value != 1:
        raise UnsupportedNetworkError(f"{path}: takes {batch[0].dim_value} inputs at a time; the checker reads one.")
    try:
        onnx.checker.check_model(onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True))
    except (ValueError, RuntimeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise UnsupportedNetworkError(f"{path}: is no valid ONNX ({first_line(error)}).") from None
    return graph, model.opset_import


def first_line(error: Exception) -> str:
    """What the error says in its first line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


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
        outside = attribute.t.data_location == onnx.TensorProto.EXTERNAL
        if attribute.type not in SIMPLE or attribute.ref_attr_name or outside:
            raise UnsupportedNetworkError(f"its attribute {attribute.name!r} is of a kind that is not read.")
        if not np.isfinite([attribute.f, *attribute.floats]).all():
            raise UnsupportedNetworkError(f"its attribute {attribute.name!r} is not finite.")
    found = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if len(found) != len(node.attribute):
        raise UnsupportedNetworkError("it has an attribute twice.")
    return found


def require_folded(node: onnx.NodeProto, names: Sequence[str]) -> None:
    """Raises UnsupportedNetworkError unless the node makes one constant of constants in a way that is known."""
    if node.op_type not in FOLDED or (not names and node.op_type != "Constant") or len(node.output) != 1:
        raise UnsupportedNetworkError("it makes a constant in a way that the checker does not know.")


def require_size(count: int) -> None:
    """Raises UnsupportedNetworkError where that many entries take more memory than the checker spends."""
    if count > ENTRIES:
        raise UnsupportedNetworkError(f"{count} entries are more than the checker reads.")


def require_one_result(kind: str, operands: Sequence[NDArray[Any]], found: NDArray[Any], *, rounded: bool) -> bool:
    """Whether the result of constants is a rounded one.

    Args:
        operands, found: of any shape.
        rounded: an operand is.

    Raises UnsupportedNetworkError unless all runtimes agree on the result: numbers are rounded once, by no operation
    that magnifies what flushing to zero loses; nothing else depends on rounding, overflows or is cut off.
    """
    if kind not in EXACT:
        return rounded
    if kind != "Equal" and kind != "Cast" and found.dtype == np.float32:
        small = kind in ("Div", "Sqrt") and bool((np.abs(operands[-1]) < SMALLEST).any())
        if rounded or small:
            raise UnsupportedNetworkError("it makes a constant that depends on how numbers are rounded.")
        return True
    wide = [np.asarray(one, dtype=np.float64) for one in operands]
    odd = kind == "Equal" and operands[0].dtype == np.float32
    with np.errstate(all="ignore"):
        if rounded or odd or not np.array_equal(EXACT[kind](*wide), found):
            raise UnsupportedNetworkError("it makes a constant that runtimes may not agree on.")
    return False


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
