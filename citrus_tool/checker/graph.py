"""The checker's own reading of an ONNX classifier: sparse affine maps and ReLUs in float64.

Shares no code with the rest of citrus, so that a fault of the importer cannot hide in both. Data movement (reshape,
transpose, slice, ...) is done by the reference evaluator of the onnx package on arrays of positions; constants are
folded by it too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from scipy import sparse

from citrus_tool.checker.operators import (
    MOVES,
    SMALLEST,
    attributes_of,
    first_line,
    opened,
    operands_of,
    require_constant,
    require_folded,
    require_one_result,
    require_read,
    require_size,
)
from citrus_tool.checker.windows import Windows, places_of
from citrus_tool.errors import UnsupportedNetworkError

Floats = NDArray[np.float64]
Index = NDArray[np.int64]
Matrix = Any
"""A dense array or scipy.sparse.csr_array; neither library gives the pair a common type."""

DENSE: Final = 0.2
"""The share of nonzeros above which a matrix is kept dense: sparse products of such are slower."""
EVALUATOR_ERRORS: Final = (
    IndexError,
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
    NotImplementedError,
    RuntimeError,
)
"""What numpy and the reference evaluator raise for operands that do not fit."""


@dataclass(frozen=True, kw_only=True)
class AffineMap:
    """sum of matrix @ (value of the node), plus bias; `sizes` are the matrices' absolute values.

    `bias_size`: the sum of the absolute values that the bias is computed from. `terms`: through how many additions the
    products of each source may go in float32, and last the bias; None: entries are moved, and nothing is rounded.
    `windows`: the one matrix once more, of a convolution.
    """

    sources: tuple[int, ...]
    matrices: tuple[Matrix, ...]
    sizes: tuple[Matrix, ...]
    bias: Floats
    bias_size: Floats
    terms: tuple[int, ...] | None
    windows: Windows | None = None

    @cached_property
    def diagonal(self) -> bool:
        """Whether each entry is a multiple of the same entry of one source, and a shift."""
        matrix, entries = self.matrices[0], np.arange(len(self.bias))
        if len(self.matrices) > 1 or not sparse.issparse(matrix) or matrix.shape[1] != len(entries):
            return False
        return np.array_equal(matrix.indptr[1:], entries + 1) and np.array_equal(matrix.indices, entries)


@dataclass(frozen=True, kw_only=True)
class Relu:
    """max(z, floor z) of the node `source`, 0 <= floor <= 1."""

    source: int
    floor: float


@dataclass(frozen=True, kw_only=True)
class Graph:
    """The network as nodes in topological order, each a vector; node 0 is the flat input in pixel space.

    layers: of the nodes 1, 2, ...; the last is the vector of logits.  sizes: entries of every node, the input first.
    largest: |constant| of the file.
    """

    layers: tuple[AffineMap | Relu, ...]
    sizes: tuple[int, ...]
    largest: float

    @cached_property
    def users(self) -> tuple[int, ...]:
        """By node, how many layers take it."""
        taken = [0] * len(self.sizes)
        for layer in self.layers:
            for source in layer.sources if isinstance(layer, AffineMap) else (layer.source,):
                taken[source] += 1
        return tuple(taken)


@dataclass(frozen=True, kw_only=True)
class _Value:
    """A tensor of the file: entry `index[i]` of the node `node` at position i; batch axis of 1 included."""

    node: int
    index: Index


def compact(matrix: Matrix) -> Matrix:
    """The matrix as a dense array unless it is sparse enough."""
    if sparse.issparse(matrix) and matrix.nnz > DENSE * matrix.shape[0] * matrix.shape[1]:
        return matrix.toarray()
    return matrix


class _GraphReader:
    def __init__(self, size: int, opsets: Sequence[Any]) -> None:
        self.layers: list[AffineMap | Relu] = []
        self.sizes = [size]
        self.values: dict[str, _Value] = {}
        self.constants: dict[str, NDArray[Any]] = {}
        self.rounded: set[str] = set()  # constants that are computed, and rounded
        self.largest = 0.0
        self.opsets = opsets
        self.carried = [0]  # by node: terms of the sum that it ends, moved or scaled since; 0 behind a ReLU

    def constant(self, name: str, value: NDArray[Any]) -> None:
        """Keeps a constant of the file."""
        self.constants[name] = require_constant(name, value)
        if value.dtype == np.float32:
            self.largest = max(self.largest, float(np.abs(value).max(initial=0.0)))

    def push(self, layer: AffineMap | Relu, size: int, carried: int) -> int:
        self.layers.append(layer)
        self.sizes.append(size)
        self.carried.append(carried)
        return len(self.layers)

    def affine(
        self,
        shape: tuple[int, ...],
        parts: Sequence[tuple[_Value, Matrix]],
        bias: Floats | float,
        *,
        terms: int | Literal["carried", "none"],
        bias_size: Floats | float | None = None,
        windows: Windows | None = None,
    ) -> _Value:
        """The sum of matrix @ value.flatten() as a new node of the given shape.

        terms: of one entry's sum; `carried`: the operation works entry by entry, and a runtime may fuse it into the
        sums that the values are; `none`: entries are moved, or the operation is no part of the file.
        """
        count = int(np.prod(shape))
        matrices = []
        for value, matrix in parts:
            place = sparse.csr_array(
                (np.ones(value.index.size), (np.arange(value.index.size), value.index.ravel())),
                shape=(value.index.size, self.sizes[value.node]),
            )
            matrices.append(compact(matrix @ place))
        full = np.broadcast_to(np.asarray(bias, dtype=np.float64), shape).ravel()
        largest = np.abs(full) if bias_size is None else np.broadcast_to(bias_size, shape).ravel()
        sources, sizes = tuple(value.node for value, _ in parts), tuple(abs(matrix) for matrix in matrices)
        before = [self.carried[source] for source in sources]
        layer = AffineMap(
            sources=sources,
            matrices=tuple(matrices),
            sizes=sizes,
            bias=full,
            bias_size=largest,
            terms=None if terms == "none" else self.additions(before, terms),
            windows=windows,
        )
        carried = terms if isinstance(terms, int) else max(before)
        return _Value(node=self.push(layer, count, carried), index=np.arange(count).reshape(shape))

    def additions(self, before: list[int], terms: int | str) -> tuple[int, ...]:
        """Through how many additions the products of each source may go, and the bias; `before`: those of the sources.

        What is added entry by entry goes through as many as the sum has that it may be fused into: another one.
        """
        if isinstance(terms, int):
            return (*[terms] * len(before), terms)
        others = [before[:place] + before[place + 1 :] for place in range(len(before))]
        return (*(max(some, default=0) for some in others), max(before))

    def scaled(
        self,
        x: _Value,
        scale: Floats | float,
        shift: Floats | float,
        *,
        terms: Literal["carried", "none"] = "carried",
        bias_size: Floats | float | None = None,
    ) -> _Value:
        """scale * x + shift, with broadcasting."""
        shape = np.broadcast_shapes(x.index.shape, np.shape(scale), np.shape(shift))
        wide = _Value(node=x.node, index=np.broadcast_to(x.index, shape))
        factor = np.broadcast_to(np.asarray(scale, dtype=np.float64), shape).ravel()
        matrix = sparse.diags_array(factor, format="csr")
        return self.affine(shape, [(wide, matrix)], shift, terms=terms, bias_size=bias_size)

    def relu(self, x: _Value, floor: float) -> _Value:
        if not 0 <= floor <= 1:
            raise UnsupportedNetworkError(f"a leaky ReLU has slope {floor}; the checker reads slopes from 0 to 1.")
        size = self.sizes[x.node]
        if not np.array_equal(x.index.ravel(), np.arange(size)):  # neurons are numbered in the file's order
            size = x.index.size
            x = self.affine(x.index.shape, [(x, sparse.eye_array(size, format="csr"))], 0.0, terms="none")
        return _Value(node=self.push(Relu(source=x.node, floor=floor), size, 0), index=x.index)

    def evaluated(self, node: onnx.NodeProto, given: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """The node's outputs for known inputs, by the reference evaluator."""
        inputs = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in given.items()
        ]
        outputs = [helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None) for name in node.output]
        model = helper.make_model(helper.make_graph([node], "g", inputs, outputs), opset_imports=self.opsets)
        return list(ReferenceEvaluator(model).run(None, dict(given)))

    def read(self, node: onnx.NodeProto) -> None:
        try:
            self._read(node)
        except UnsupportedNetworkError as refused:
            raise UnsupportedNetworkError(f"node {node.name!r} ({node.op_type}): {refused}") from None
        except EVALUATOR_ERRORS as error:
            raise UnsupportedNetworkError(
                f"node {node.name!r} ({node.op_type}) does not fit its inputs ({first_line(error)}); the checker does"
                " not read it."
            ) from None

    def _read(self, node: onnx.NodeProto) -> None:
        names, attributes = operands_of(node), attributes_of(node)
        unknown = [name for name in names if name and name not in self.constants and name not in self.values]
        if unknown:
            raise UnsupportedNetworkError(f"nothing gives its input {unknown[0]!r}.")
        if any(name in self.constants or name in self.values for name in node.output if name):
            raise UnsupportedNetworkError("its output is given twice.")
        if all(not name or name in self.constants for name in names):
            require_folded(node, names)
            given = {name: self.constants[name] for name in names if name}
            operands = [self.constants[name] for name in names if name]
            if node.op_type in ("ConstantOfShape", "Expand"):
                require_size(math.prod(int(axis) for axis in operands[-1].ravel()))
            folded = np.asarray(self.evaluated(node, given)[0])
            rounded = not self.rounded.isdisjoint(names)
            if require_one_result(node.op_type, operands, folded, rounded=rounded):
                self.rounded.add(node.output[0])
            self.constant(node.output[0], folded)
            return
        require_read(node, names, attributes)
        if node.op_type == "Shape":
            self.constants[node.output[0]] = np.array(self.values[names[0]].index.shape, dtype=np.int64)
            return
        found = self.operator(node, names, attributes)
        if found.index.ndim < 1 or found.index.shape[0] != 1:
            raise UnsupportedNetworkError(f"it changes the batch axis: its value has shape {found.index.shape}.")
        self.values[node.output[0]] = found

    def operator(self, node: onnx.NodeProto, names: list[str], given: dict[str, Any]) -> _Value:
        kind = node.op_type
        operands = [self.values.get(name, self.constants.get(name)) for name in names]
        x = operands[0]
        if kind not in MOVES and kind != "Pad":
            odd = [c for c in operands if not isinstance(c, _Value) and (c is None or c.dtype != np.float32)]
            if odd:
                raise UnsupportedNetworkError("its constants are not float32.")
        rest = [np.asarray(c, dtype=np.float64) for c in operands[1:] if not isinstance(c, _Value) and c is not None]
        if kind in ("Add", "Sub", "Mul", "Div"):
            return self.arithmetic(kind, *operands)
        if kind in ("Concat", "Sum"):
            return self.joined(kind, operands, given)
        if not isinstance(x, _Value) or any(isinstance(c, _Value) for c in operands[1:]):
            raise UnsupportedNetworkError(f"{kind} of computed weights is not read by the checker.")
        if kind == "Dropout" and len(names) > 2 and bool(np.any(rest[1])):
            raise UnsupportedNetworkError("a Dropout in training mode is not read by the checker.")
        if kind == "Reshape" and given.get("allowzero", 0):
            raise UnsupportedNetworkError("a Reshape with allowzero is not read by the checker.")
        if kind == "Slice" and len(rest) == 4 and bool((rest[3] < 1).any()):
            raise UnsupportedNetworkError("a Slice that goes backwards is not read by the checker.")
        if kind in MOVES:
            fixed = {name: self.constants[name] for name in names[1:] if name}
            moved = self.evaluated(node, {names[0]: x.index, **fixed})[0]
            return _Value(node=x.node, index=moved.astype(np.int64))
        if kind == "Relu":
            return self.relu(x, 0.0)
        if kind == "LeakyRelu":
            return self.relu(x, float(given.get("alpha", np.float32(0.01))))
        if kind == "Neg":
            return self.scaled(x, -1.0, 0.0)
        if kind == "Conv":
            return self.conv(x, rest[0], rest[1] if len(rest) > 1 else None, given)
        if kind in ("AveragePool", "GlobalAveragePool"):
            return self.average(x, given, whole=kind == "GlobalAveragePool")
        if kind == "Pad" and given.get("mode", b"constant") == b"constant":
            return self.pad(node, x, rest, given)
        if kind == "BatchNormalization" and not given.get("training_mode", 0):
            return self.normalised(x, rest, float(given.get("epsilon", np.float32(1e-5))))
        if kind in ("Gemm", "MatMul"):
            return self.product(kind, x, rest, given)
        raise UnsupportedNetworkError("in this form it is not read by the checker.")

    def normalised(self, x: _Value, rest: list[Floats], epsilon: float) -> _Value:
        channels = x.index.shape[1] if x.index.ndim > 1 else 0
        if any(c.shape != (channels,) for c in rest):
            raise UnsupportedNetworkError("its parameters are not one number for each channel.")
        if epsilon < 0 or not bool(((rest[3] >= 0) & (rest[3] + epsilon >= SMALLEST)).all()):
            raise UnsupportedNetworkError("it divides by the root of a negative number, or of one close to 0.")
        gamma, beta, mean, var = (c.reshape(-1, *[1] * (x.index.ndim - 2)) for c in rest)
        scale = gamma / np.sqrt(var + epsilon)
        return self.scaled(x, scale, beta - mean * scale, bias_size=np.abs(beta) + np.abs(mean * scale))

    def arithmetic(self, kind: str, a: Any, b: Any) -> _Value:
        if isinstance(a, _Value) and isinstance(b, _Value):
            if kind not in ("Add", "Sub") or a.index.shape != b.index.shape:
                raise UnsupportedNetworkError(f"{kind} of two values of shapes {a.index.shape} and {b.index.shape}.")
            one = sparse.eye_array(a.index.size, format="csr")
            parts = [(a, one), (b, one if kind == "Add" else -one)]
            return self.affine(a.index.shape, parts, 0.0, terms="carried")
        if isinstance(a, _Value):
            c = np.asarray(b, dtype=np.float64)
            if kind in ("Add", "Sub"):
                return self.scaled(a, 1.0, c if kind == "Add" else -c)
            return self.scaled(a, c if kind == "Mul" else 1 / c, 0.0)
        c = np.asarray(a, dtype=np.float64)
        if kind == "Div":
            raise UnsupportedNetworkError("a quotient by a computed value is not read by the checker.")
        return self.scaled(b, c, 0.0) if kind == "Mul" else self.scaled(b, 1.0 if kind == "Add" else -1.0, c)

    def joined(self, kind: str, operands: list[Any], given: dict[str, Any]) -> _Value:
        if not all(isinstance(value, _Value) for value in operands):
            raise UnsupportedNetworkError(f"{kind} with constants is not read by the checker.")
        if kind == "Sum":
            if len({value.index.shape for value in operands}) != 1:
                raise UnsupportedNetworkError("a Sum of values of several shapes is not read by the checker.")
            one = sparse.eye_array(operands[0].index.size, format="csr")
            return self.affine(operands[0].index.shape, [(value, one) for value in operands], 0.0, terms="carried")
        numbers = [np.full(value.index.shape, place) for place, value in enumerate(operands)]
        owner = np.concatenate(numbers, axis=given["axis"])
        parts = []
        for place, value in enumerate(operands):
            rows = np.flatnonzero(owner.ravel() == place)
            shape = (owner.size, value.index.size)
            parts.append((value, sparse.csr_array((np.ones(len(rows)), (rows, np.arange(len(rows)))), shape=shape)))
        return self.affine(owner.shape, parts, 0.0, terms="none")

    def product(self, kind: str, x: _Value, rest: list[Floats], given: dict[str, Any]) -> _Value:
        if given.get("transA", 0) or rest[0].ndim != 2:
            raise UnsupportedNetworkError(f"{kind} with a transposed input or a stack of weights.")
        if kind == "Gemm" and x.index.ndim != 2:
            raise UnsupportedNetworkError("a Gemm of something else than a matrix.")
        weight = rest[0].T if given.get("transB", 0) else rest[0]  # (in, out)
        if x.index.shape[-1] != len(weight):
            raise UnsupportedNetworkError(f"{x.index.shape[-1]} entries meet {len(weight)} weights.")
        alpha, beta = given.get("alpha", 1.0), given.get("beta", 1.0)
        self.largest = max(self.largest, abs(alpha), abs(beta))
        weight = weight * alpha
        bias = rest[1] * beta if len(rest) > 1 else np.zeros(1)
        count = x.index.size // x.index.shape[-1]
        matrix = weight.T if count == 1 else sparse.kron(sparse.eye_array(count), weight.T, format="csr")
        return self.affine((*x.index.shape[:-1], weight.shape[1]), [(x, matrix)], bias, terms=len(weight))

    def conv(self, x: _Value, weight: Floats, bias: Floats | None, given: dict[str, Any]) -> _Value:
        groups = given.get("group", 1)
        if weight.ndim != 4 or groups < 1 or len(weight) % groups or x.index.shape[1:2] != (groups * weight.shape[1],):
            raise UnsupportedNetworkError(f"weights of shape {weight.shape} for {groups} groups of its channels.")
        if bias is not None and bias.shape != (len(weight),):
            raise UnsupportedNetworkError(f"a bias of shape {bias.shape}.")
        places = places_of(x.index.shape, weight.shape[2:], given)
        maps, each = places.shape[3:], weight.shape[0] // groups
        require_size(places.size * each)
        windows = Windows(
            weights=weight.reshape(groups, each, -1), places=places.reshape(groups, weight[0].size, maps[0] * maps[1])
        )
        out = np.arange(len(weight) * maps[0] * maps[1]).reshape(groups, each, 1, -1)
        rows, columns, entries = (
            part.ravel() for part in np.broadcast_arrays(out, windows.places[:, None], windows.weights[..., None])
        )
        inside = columns >= 0
        placed = (entries[inside], (rows[inside], columns[inside]))
        matrix = sparse.csr_array(placed, shape=(out.size, x.index.size))
        shift = 0.0 if bias is None else bias.reshape(-1, 1, 1)
        flat = x.index.ravel()
        windows = replace(windows, places=np.where(windows.places < 0, -1, flat[windows.places]))
        shape, terms = (1, len(weight), *maps), weight[0].size
        return self.affine(shape, [(x, matrix)], shift, terms=terms, windows=windows)

    def average(self, x: _Value, given: dict[str, Any], *, whole: bool) -> _Value:
        if x.index.ndim != 4:
            raise UnsupportedNetworkError("an average over something else than (C, H, W) maps.")
        kernel = x.index.shape[2:] if whole else tuple(given["kernel_shape"])
        if len(kernel) != 2:
            raise UnsupportedNetworkError(f"an average over windows of shape {kernel}.")
        places = places_of(x.index.shape, kernel, {} if whole else given)
        channels, maps = len(places), places.shape[3:]
        rows = np.broadcast_to(np.arange(channels * maps[0] * maps[1]).reshape(channels, 1, 1, *maps), places.shape)
        inside = places >= 0
        count = inside.sum((1, 2), keepdims=True) if not given.get("count_include_pad", 0) else kernel[0] * kernel[1]
        share = np.broadcast_to(1.0 / count, places.shape)
        shape = (channels * maps[0] * maps[1], x.index.size)
        matrix = sparse.csr_array((share[inside], (rows[inside], places[inside])), shape=shape)
        return self.affine((1, channels, *maps), [(x, matrix)], 0.0, terms=int(np.prod(kernel)))

    def pad(self, node: onnx.NodeProto, x: _Value, rest: list[Floats], given: dict[str, Any]) -> _Value:
        pads = [int(p) for p in (rest[0] if rest else given["pads"])]
        half = len(pads) // 2
        if half != x.index.ndim or min(pads) < 0 or len(node.input) > 3:
            raise UnsupportedNetworkError("a Pad that crops, or of some axes only, is not read by the checker.")
        require_size(math.prod(size + a + b for size, a, b in zip(x.index.shape, pads, pads[half:], strict=False)))
        constant = float(rest[1].item()) if len(rest) > 1 else float(given.get("value", 0.0))
        place = np.pad(
            np.arange(x.index.size).reshape(x.index.shape),
            list(zip(pads[:half], pads[half:], strict=True)),
            constant_values=-1,
        )
        rows = np.flatnonzero(place.ravel() >= 0)
        entries = (np.ones(len(rows)), (rows, place.ravel()[rows]))
        matrix = sparse.csr_array(entries, shape=(place.size, x.index.size))
        return self.affine(place.shape, [(x, matrix)], np.where(place < 0, constant, 0.0), terms="none")


def read_graph(
    path: Path, shape: Sequence[int], *, mean: Sequence[float], std: Sequence[float], layout: str, clip: bool
) -> Graph:
    """The classifier in the file as a function of pixels in [0, 1], of per-sample shape `shape` (C, H, W).

    Args:
        mean, std: of each channel; the file gets (pixel - mean) / std, scale and shift rounded to float32.
        layout: "nhwc" if the file wants channels last; otherwise the pixels in order, in the file's own shape.
        clip: pixels are clipped to [0, 1] first, as 1 - relu(1 - relu(z)).

    Raises UnsupportedNetworkError for anything that is not affine or a ReLU.
    """
    proto, opsets = opened(path)
    reader = _GraphReader(int(np.prod(shape)), opsets)
    x = _Value(node=0, index=np.arange(reader.sizes[0]).reshape(1, *shape))
    if clip:
        for _ in range(2):
            x = reader.scaled(reader.relu(x, 0.0), -1.0, 1.0, terms="none")
    if any(mean) or any(s != 1 for s in std):
        place = (-1, *[1] * (len(shape) - 1))
        scale, shift = 1 / np.asarray(std, dtype=np.float64), -np.asarray(mean) / np.asarray(std)
        x = reader.scaled(x, _rounded(scale).reshape(place), _rounded(shift).reshape(place))
    constants = {tensor.name for tensor in proto.initializer}
    (wanted,) = [value for value in proto.input if value.name not in constants]
    sizes = [int(axis.dim_value) for axis in wanted.type.tensor_type.shape.dim][1:]
    index = x.index.transpose(0, 2, 3, 1) if layout == "nhwc" else x.index
    if int(np.prod(sizes)) != index.size:
        raise UnsupportedNetworkError(f"{path}: its input has shape {sizes} per image, not that of {tuple(shape)}.")
    reader.values[wanted.name] = _Value(node=x.node, index=index.reshape(1, *sizes))
    try:
        for tensor in proto.initializer:
            reader.constant(tensor.name, numpy_helper.to_array(tensor))
        for node in proto.node:
            reader.read(node)
    except UnsupportedNetworkError as refused:
        raise UnsupportedNetworkError(f"{path}: {refused}") from None
    logits = reader.values.get(proto.output[0].name)
    if logits is None or sum(size != 1 for size in logits.index.shape) > 1:
        raise UnsupportedNetworkError(f"{path}: its output is no vector of logits that depends on the input.")
    count = logits.index.size
    reader.affine((count,), [(logits, sparse.eye_array(count, format="csr"))], 0.0, terms="none")
    return Graph(layers=tuple(reader.layers), sizes=tuple(reader.sizes), largest=reader.largest)


def _rounded(values: Floats) -> Floats:
    """The nearest float32 numbers."""
    return values.astype(np.float32).astype(np.float64)
