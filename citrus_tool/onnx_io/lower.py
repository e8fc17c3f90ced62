"""ONNX graph -> Network: one rule per operator, canonical layers out.

The graph is read at batch 1 and its batch axis then freed: shapes that a file computes or states as [1, n] lose
their first axis. The parity check at batch 64 (parity.py) shows where that reading would be wrong.

Which constants are weights is decided by role: the constant operand of Conv, Gemm and MatMul, the bias that these
carry or that an Add right behind them adds (one value per output channel or feature, no other user of the sum's
operand), scale and offset of BatchNormalization. Those become nn.Parameters, bound to the tensor of the file that
they came from; one tensor is one parameter, however many nodes use it. Every other constant, as in normalisation,
becomes an Affine layer that no training touches. A weight whose tensor also plays another role (a constant, or the
transposed weight of another node), or that the file computes from others, is kept but frozen.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from citrus_tool.errors import UnsupportedNetworkError
from citrus_tool.network import (
    CANONICAL, INPUT, Add, Affine, Concat, GraphBuilder, Network, Pad, Reshape, Slice, Transpose,
)  # fmt: skip
from citrus_tool.onnx_io.contract import InputContract
from citrus_tool.onnx_io.source import OLDEST_OPSET
from citrus_tool.onnx_io.torch_layers import NotConvertedError, convert

ADVICE = "Re-export the network without it; `citrus inspect` lists every node and what supports it."
FOLDABLE = frozenset(
    "Add And Cast Ceil Concat ConstantOfShape Div Equal Expand Floor Gather Greater Identity Less Max Min Mul Neg Not Or "
    "Pow Range Reciprocal ReduceProd Reshape Slice Sqrt Squeeze Sub Tile Transpose Unsqueeze Where".split()
)
"""Operators that are evaluated at import when all their inputs are constants (mostly arithmetic on shapes)."""


class Refusal(Exception):
    """Why a node cannot be read; the boundary adds file, node, operator and opset once."""

    def __init__(self, reason: str, advice: str = ADVICE) -> None:
        super().__init__(reason)
        self.advice = advice


@dataclass(frozen=True, kw_only=True)
class Activation:
    """A value that depends on the input: a node of the graph under construction, with its per-sample shape."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Constant:
    """A value known at import. `tensor` names the file's tensor whose plain or `transposed` content it is, if any."""

    value: NDArray[Any]
    tensor: str | None = None
    transposed: bool = False


Value = Activation | Constant


@dataclass(frozen=True, kw_only=True)
class View:
    """How a parameter shows a tensor of the file: scale * tensor, transposed or not, in the shape `shape`."""

    tensor: str
    transposed: bool
    scale: float
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Binding:
    """Entry `parameter` of the network's state dict is the view `view` of the file's tensor."""

    parameter: str
    view: View


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


@dataclass(frozen=True, kw_only=True)
class Call:
    """One ONNX node with the values of its inputs; None where an optional input is absent."""

    name: str
    operator: str
    attributes: Mapping[str, Any]
    inputs: tuple[Value | None, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]

    def activation(self) -> Activation:
        """The first input, which must depend on the network's input."""
        if not self.inputs or not isinstance(self.inputs[0], Activation):
            raise Refusal("its first operand is a constant; citrus reads layers applied to activations")
        return self.inputs[0]

    def constant(self, position: int) -> Constant | None:
        """Input `position`, which must be known at import, or None where it is absent."""
        value = self.inputs[position] if position < len(self.inputs) else None
        if isinstance(value, Activation):
            raise Refusal(f"its input {self.input_names[position]!r} is computed from the network's input")
        return value

    def weights(self, position: int) -> Constant:
        value = self.constant(position)
        if value is None:
            raise Refusal("its weights are missing")
        return value

    def integers(self, position: int, attribute: str) -> tuple[int, ...] | None:
        """A list of integers given as input `position` (newer opsets) or as an attribute (older ones)."""
        value = self.constant(position)
        if value is not None:
            return tuple(int(v) for v in value.value.reshape(-1))
        given = self.attributes.get(attribute)
        return None if given is None else tuple(int(v) for v in given)


@dataclass(kw_only=True)
class Lowering:
    """The state of one pass over a graph: the network built so far and where its parameters came from."""

    builder: GraphBuilder
    opset: int
    consumers: Counter[str]
    parameters: dict[View, nn.Parameter] = field(default_factory=dict)
    statistics: list[tuple[View, Tensor]] = field(default_factory=list)
    fixed_tensors: set[str] = field(default_factory=set)
    without_bias: dict[str, nn.Conv2d | nn.Linear] = field(default_factory=dict)
    emitted: list[str] = field(default_factory=list)
    created: list[nn.Parameter] = field(default_factory=list)

    def emit(self, name: str, layer: nn.Module, *inputs: Activation) -> Activation:
        """Appends `layer`; its output shape comes from running it on zeros, two at a time to see the batch axis."""
        if not isinstance(layer, CANONICAL):
            raise Refusal(f"onnx2torch reads it as {type(layer).__name__}, for which citrus has no layer")
        try:
            with torch.no_grad():
                out = layer.eval()(*(torch.zeros(2, *x.shape) for x in inputs))
        except (RuntimeError, ValueError, IndexError) as error:
            shapes = ", ".join(str(x.shape) for x in inputs)
            raise Refusal(f"it does not fit its input of shape {shapes} ({str(error).splitlines()[0]})") from None
        self.emitted.append(_describe(layer))
        return Activation(name=self.builder.add(layer, *(x.name for x in inputs), name=name), shape=tuple(out.shape[1:]))

    def parameter(
        self, constant: Constant, shape: Sequence[int], *, transpose: bool = False, scale: float = 1.0
    ) -> nn.Parameter:
        """The trainable weight that shows `constant`; the same object for the same view of the same tensor."""
        value = torch.from_numpy(_view(_float32(constant), transpose, scale, shape))
        if constant.tensor is None:
            return nn.Parameter(value, requires_grad=False)
        view = View(
            tensor=constant.tensor, transposed=constant.transposed ^ transpose, scale=scale, shape=tuple(shape)
        )
        if view not in self.parameters:
            self.parameters[view] = nn.Parameter(value)
            self.created.append(self.parameters[view])
        return self.parameters[view]

    def statistic(self, constant: Constant, shape: Sequence[int]) -> Tensor:
        """A running mean or variance: no gradient, but written back to the file."""
        value = torch.from_numpy(_view(_float32(constant), False, 1.0, shape))
        if constant.tensor is not None:
            view = View(tensor=constant.tensor, transposed=constant.transposed, scale=1.0, shape=tuple(shape))
            self.statistics.append((view, value))
        return value

    def fixed(self, constant: Constant) -> NDArray[np.float64]:
        """A constant that training must not touch, in float64 so that 1/c is rounded once."""
        if constant.tensor is not None:
            self.fixed_tensors.add(constant.tensor)
        return _float32(constant).astype(np.float64)

    def network(self, output: Activation) -> tuple[Network, tuple[Binding, ...]]:
        """Closes the graph; freezes weights whose tensor plays several roles; names the bindings."""
        network = self.builder.build(output.name)
        roles = Counter(view.tensor for view in self.parameters)
        roles.update({view.tensor for view, _ in self.statistics})
        roles.update(self.fixed_tensors)
        for view, parameter in self.parameters.items():
            parameter.requires_grad_(roles[view.tensor] == 1)
        shown = [(v, t) for v, t in [*self.parameters.items(), *self.statistics] if roles[v.tensor] == 1]
        views = {id(tensor): view for view, tensor in shown}
        entries = [*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False)]
        bindings = tuple(Binding(parameter=n, view=views[id(t)]) for n, t in entries if id(t) in views)
        return network.eval(), bindings


def lower(
    graph: onnx.GraphProto, contract: InputContract, *, input_name: str, where: str, opset: int, tensors: Iterable[str]
) -> Lowered:
    """Reads `graph` (opset 13 or later, every node named) as a Network from pixel space to logits.

    Args:
        where, opset: file and its own opset, for messages.
        tensors: names of the original file's constants; only these can be trained, as only these can be written.

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
    created: dict[str, list[nn.Parameter]] = {}
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
        except Refusal as refusal:
            reason = f"{refusal}. {refusal.advice}"
            problem = problem or UnsupportedNetworkError(
                f"{where}: node {node.name!r} (operator {node.op_type}, opset {opset}) is not supported: {reason}"
            )
            records.append(NodeRecord(name=node.name, operator=node.op_type, status="unsupported", reason=reason))
            continue
        values |= dict(zip(node.output, outputs, strict=False))
        first = outputs[0]
        created[node.name] = lowering.created
        records.append(
            NodeRecord(
                name=node.name,
                operator=node.op_type,
                status="supported" if isinstance(first, Activation) else "constant",
                layers=tuple(lowering.emitted),
                shape=first.shape if isinstance(first, Activation) else None,
            )
        )
    network, bindings = None, ()
    if problem is None:
        try:
            network, bindings = _close(lowering, values.get(graph.output[0].name), where)
        except UnsupportedNetworkError as error:
            problem = error
    counts = {name: sum(p.numel() for p in new if p.requires_grad) for name, new in created.items()}
    final = tuple(replace(record, parameters=counts.get(record.name, 0)) for record in records)
    return Lowered(network=network, bindings=bindings, records=final, problem=problem)


def _close(lowering: Lowering, output: Value | None, where: str) -> tuple[Network, tuple[Binding, ...]]:
    if not isinstance(output, Activation) or output.name == INPUT:
        raise UnsupportedNetworkError(f"{where}: the output does not depend on the input; this is no classifier.")
    classes = math.prod(output.shape)
    if classes < 2 or sum(s != 1 for s in output.shape) > 1:
        raise UnsupportedNetworkError(
            f"{where}: the output has shape {output.shape} per input; a classifier gives a vector of two or more logits."
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
        raise Refusal(f"it belongs to the operator set {node.domain!r}")
    if call.operator == "Constant":
        name = node.output[0]
        tensor = name if name in known and "value" in call.attributes else None
        return (Constant(value=_constant_value(call.attributes), tensor=tensor),)
    if call.operator == "Shape" and isinstance(call.inputs[0], Activation):
        whole = np.array([1, *call.inputs[0].shape], dtype=np.int64)
        return (Constant(value=whole[call.attributes.get("start", 0) : call.attributes.get("end", len(whole))]),)
    if call.operator in FOLDABLE and call.inputs and all(v is None or isinstance(v, Constant) for v in call.inputs):
        return _fold(lowering.opset, node, call)
    result = RULES.get(call.operator, _by_onnx2torch)(lowering, call)
    return result if isinstance(result, tuple) else (result,)


def _constant_value(attributes: Mapping[str, Any]) -> NDArray[Any]:
    kind, value = next(iter(attributes.items()), ("nothing", None))
    if kind == "value":
        return numpy_helper.to_array(value)
    if kind in ("value_float", "value_floats"):
        return np.asarray(value, dtype=np.float32)
    if kind in ("value_int", "value_ints"):
        return np.asarray(value, dtype=np.int64)
    raise Refusal(f"it holds {kind}; citrus reads constant tensors, floats and integers")


def _fold(opset: int, node: onnx.NodeProto, call: Call) -> tuple[Value, ...]:
    first = call.inputs[0]
    if isinstance(first, Constant) and call.operator == "Identity":
        return (first,)
    if isinstance(first, Constant) and call.operator == "Transpose" and first.value.ndim == 2:
        turned = tuple(call.attributes.get("perm", (1, 0))) == (1, 0)
        value = np.ascontiguousarray(first.value.T) if turned else first.value
        return (Constant(value=value, tensor=first.tensor, transposed=first.transposed ^ turned),)
    graph = helper.make_graph(
        [node],
        "fold",
        [onnx.ValueInfoProto(name=n) for n in dict.fromkeys(call.input_names) if n],
        [onnx.ValueInfoProto(name=n) for n in call.output_names],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    try:
        feeds = {n: v.value for n, v in zip(call.input_names, call.inputs, strict=True) if isinstance(v, Constant)}
        results = ReferenceEvaluator(model).run(None, feeds)
    except Exception as error:  # the evaluator raises whatever numpy does
        raise Refusal(f"its constant inputs cannot be evaluated ({error})") from None
    return tuple(Constant(value=np.asarray(r)) for r in results)


# --------------------------------------------------------------------------------------------------- operator rules

Rule = Callable[[Lowering, Call], Value | tuple[Value, ...]]


def _by_onnx2torch(lowering: Lowering, call: Call) -> Value:
    """Layers without constants (Relu, Sigmoid, ...), and whatever else onnx2torch reads as a canonical layer."""
    x = call.activation()
    if len([v for v in call.inputs if v is not None]) != 1:
        raise Refusal("citrus has no layer for it")
    return lowering.emit(call.name, _converted(call, x), x)


def _converted(
    call: Call, x: Activation, constants: Sequence[Constant] = (), attributes: Mapping[str, Any] | None = None
) -> nn.Module:
    try:
        return convert(
            call.operator,
            call.attributes if attributes is None else attributes,
            x.shape,
            [_float32(c) for c in constants],
        )
    except NotConvertedError as error:
        raise Refusal(f"onnx2torch does not read it ({error})") from None


def _conv(lowering: Lowering, call: Call) -> Value:
    x, weight, bias = call.activation(), call.weights(1), call.constant(2)
    if weight.value.ndim != 4:
        raise Refusal(f"its kernel has {weight.value.ndim - 2} spatial axes; citrus reads 2-D convolutions")
    x, pads = _padded(lowering, call, x, weight.value.shape[2:])
    attributes = {k: v for k, v in call.attributes.items() if k not in ("auto_pad", "pads")} | {"pads": pads}
    layer = _converted(call, x, [c for c in (weight, bias) if c is not None], attributes)
    assert isinstance(layer, nn.Conv2d)
    layer.weight = lowering.parameter(weight, weight.value.shape)
    if bias is not None:
        layer.bias = lowering.parameter(bias, bias.value.shape)
    else:
        lowering.without_bias[call.output_names[0]] = layer
    return lowering.emit(call.name, layer, x)


def _gemm(lowering: Lowering, call: Call) -> Value:
    x, weight, offset = call.activation(), call.weights(1), call.constant(2)
    alpha, beta = float(call.attributes.get("alpha", 1.0)), float(call.attributes.get("beta", 1.0))
    if call.attributes.get("transA", 0):
        raise Refusal("transA mixes the batch axis")
    if len(x.shape) != 1 or weight.value.ndim != 2 or alpha == 0.0:
        raise Refusal(f"citrus reads alpha * x @ W + C with alpha != 0 on vectors, and x has shape {x.shape}")
    transposed = bool(call.attributes.get("transB", 0))
    layer = _linear(lowering, call, weight, transposed=transposed, scale=alpha)
    size = layer.out_features
    if offset is not None and beta != 0.0 and offset.value.shape in ((size,), (1, size)):
        layer.bias = lowering.parameter(offset, (size,), scale=beta)
    out = lowering.emit(call.name, layer, x)
    if offset is None or beta == 0.0:
        lowering.without_bias[call.output_names[0]] = layer
    elif layer.bias is None:
        out = _affine(lowering, call.name, out, 1.0, beta * lowering.fixed(offset))
    return out


def _matmul(lowering: Lowering, call: Call) -> Value:
    x, weight = call.activation(), call.weights(1)
    if weight.value.ndim != 2 or math.prod(x.shape[:-1]) != 1:
        raise Refusal(f"citrus reads x @ W for vectors x and matrices W, here {x.shape} @ {weight.value.shape}")
    shape = (*x.shape[:-1], weight.value.shape[1])
    layer = _linear(lowering, call, weight, transposed=False, scale=1.0)
    lowering.without_bias[call.output_names[0]] = layer
    x = _reshaped(lowering, call.name, x, x.shape[-1:])
    return _reshaped(lowering, call.name, lowering.emit(call.name, layer, x), shape)


def _linear(lowering: Lowering, call: Call, weight: Constant, *, transposed: bool, scale: float) -> nn.Linear:
    """x @ W (or x @ W.T where the file has W transposed) as nn.Linear without a bias."""
    rows, columns = weight.value.shape
    out_features, in_features = (rows, columns) if transposed else (columns, rows)
    layer = nn.utils.skip_init(nn.Linear, in_features, out_features, bias=False)
    layer.weight = lowering.parameter(weight, (out_features, in_features), transpose=not transposed, scale=scale)
    return layer


def _batch_norm(lowering: Lowering, call: Call) -> Value:
    x = call.activation()
    if call.attributes.get("training_mode", 0):
        raise Refusal("it is in training mode, where one input's output depends on the others; export in evaluation mode")
    if len(x.shape) not in (1, 3):
        raise Refusal(f"citrus reads it on vectors and C x H x W images, and its input has shape {x.shape}")
    scale, offset, mean, variance = (call.weights(i) for i in (1, 2, 3, 4))
    layer = _converted(call, x, (scale, offset, mean, variance))
    assert isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)
    size = (x.shape[0],)
    layer.weight, layer.bias = lowering.parameter(scale, size), lowering.parameter(offset, size)
    layer.running_mean, layer.running_var = lowering.statistic(mean, size), lowering.statistic(variance, size)
    return lowering.emit(call.name, layer, x)


def _max_pool(lowering: Lowering, call: Call) -> Value:
    x = call.activation()
    kernel = _pool_kernel(call, x)
    pads = _explicit_pads(call, x, kernel)
    if pads[:2] != pads[2:]:
        raise Refusal(f"its padding {pads} differs between the sides")
    attributes = {k: v for k, v in call.attributes.items() if k not in ("auto_pad", "ceil_mode")} | {"pads": pads}
    return lowering.emit(call.name, _converted(call, x, attributes=attributes), x)


def _average_pool(lowering: Lowering, call: Call) -> Value:
    """Average over zero-padded windows; where padding is not counted, an Affine divides by what is."""
    x = call.activation()
    kernel = _pool_kernel(call, x)
    if any(d != 1 for d in call.attributes.get("dilations", (1, 1))):
        raise Refusal("its windows are dilated")
    strides = tuple(call.attributes.get("strides", (1, 1)))
    padded, pads = _padded(lowering, call, x, kernel)
    out = lowering.emit(call.name, nn.AvgPool2d(kernel, strides, (pads[0], pads[1])), padded)
    all_pads = _explicit_pads(call, x, kernel)
    if any(all_pads) and not call.attributes.get("count_include_pad", 0):
        ones = nn.functional.pad(torch.ones(1, 1, *x.shape[1:], dtype=torch.float64), _torch_pads(all_pads))
        counted = nn.functional.avg_pool2d(ones, kernel, strides)
        out = _affine(lowering, call.name, out, 1.0 / counted[0].numpy(), 0.0)
    return out


def _pool_kernel(call: Call, x: Activation) -> tuple[int, ...]:
    kernel = tuple(int(k) for k in call.attributes.get("kernel_shape", ()))
    if len(kernel) != 2 or len(x.shape) != 3:
        raise Refusal(f"citrus pools over the last two of three axes, here a window {kernel} on shape {x.shape}")
    if call.attributes.get("ceil_mode", 0):
        spans = _spans(call, x, kernel)
        if any((size - span) % stride for size, span, stride in spans):
            raise Refusal("ceil_mode lets windows reach beyond the padding")
    return kernel


def _spans(call: Call, x: Activation, kernel: Sequence[int]) -> list[tuple[int, int, int]]:
    """(padded size, window, stride) per spatial axis."""
    strides, dilations = _strides(call)
    pads = _explicit_pads(call, x, kernel)
    return [
        (x.shape[1 + i] + pads[i] + pads[2 + i], dilations[i] * (kernel[i] - 1) + 1, strides[i]) for i in (0, 1)
    ]


def _strides(call: Call) -> tuple[Sequence[int], Sequence[int]]:
    return call.attributes.get("strides", (1, 1)), call.attributes.get("dilations", (1, 1))


def _explicit_pads(call: Call, x: Activation, kernel: Sequence[int]) -> tuple[int, ...]:
    """The padding (top, left, bottom, right) that `auto_pad` or `pads` means."""
    mode = bytes(call.attributes.get("auto_pad", b"NOTSET")).decode()
    if mode == "NOTSET":
        return tuple(int(p) for p in call.attributes.get("pads", (0, 0, 0, 0)))
    if mode == "VALID":
        return (0, 0, 0, 0)
    strides, dilations = _strides(call)
    total = [
        max((math.ceil(x.shape[1 + i] / strides[i]) - 1) * strides[i] + dilations[i] * (kernel[i] - 1) + 1 - x.shape[1 + i], 0)
        for i in (0, 1)
    ]  # ONNX, Conv: SAME_* gives ceil(size / stride) outputs
    small, large = [t // 2 for t in total], [t - t // 2 for t in total]
    return (*small, *large) if mode == "SAME_UPPER" else (*large, *small)


def _padded(
    lowering: Lowering, call: Call, x: Activation, kernel: Sequence[int]
) -> tuple[Activation, tuple[int, ...]]:
    """`x` and the symmetric padding left to the layer; padding that differs between the sides is a Pad in front."""
    if len(x.shape) != 3:
        raise Refusal(f"its input has shape {x.shape} per sample; (C, H, W) is expected")
    pads = _explicit_pads(call, x, kernel)
    if min(pads) < 0:
        raise Refusal(f"its padding {pads} is negative")
    if pads[:2] == pads[2:]:
        return x, pads
    return lowering.emit(f"{call.name}_pad", Pad(_torch_pads(pads)), x), (0, 0, 0, 0)


def _torch_pads(pads: Sequence[int]) -> list[int]:
    """ONNX order (all begins, then all ends) to torch order (last axis first, begin and end together)."""
    half = len(pads) // 2
    return [p for axis in reversed(range(half)) for p in (pads[axis], pads[half + axis])]


def _global_pool(layer: Callable[[tuple[int, ...]], nn.Module]) -> Rule:
    def rule(lowering: Lowering, call: Call) -> Value:
        x = call.activation()
        if len(x.shape) != 3:
            raise Refusal(f"citrus pools over the last two of three axes, here on shape {x.shape}")
        return lowering.emit(call.name, layer(x.shape[1:]), x)

    return rule


def _reduce_mean(lowering: Lowering, call: Call) -> Value:
    """Mean over the spatial axes, channels first or last, as an average pool."""
    x = call.activation()
    axes = tuple(sorted(_axis(a, x) for a in call.integers(1, "axes") or ()))
    kept = tuple(a for a in range(len(x.shape)) if a not in axes)
    if len(x.shape) != 3 or len(axes) != 2:
        raise Refusal(f"citrus reads means over both spatial axes of an image, here axes {axes} of shape {x.shape}")
    keeps = bool(call.attributes.get("keepdims", 1))
    shape = tuple(1 if a in axes else s for a, s in enumerate(x.shape) if keeps or a not in axes)
    if kept != (0,):
        x = lowering.emit(call.name, Transpose((*kept, *axes)), x)
    return _reshaped(lowering, call.name, lowering.emit(call.name, nn.AvgPool2d(x.shape[1:]), x), shape)


def _arithmetic(lowering: Lowering, call: Call) -> Value:
    """Add, Sub, Mul, Div of an activation and a constant; Add and Sub of two activations."""
    a, b = call.inputs
    operator = call.operator
    if isinstance(a, Activation) and isinstance(b, Activation):
        if operator not in ("Add", "Sub"):
            raise Refusal("product or quotient of two activations; citrus reads layers that are affine or elementwise")
        if a.shape != b.shape:
            raise Refusal(f"shapes {a.shape} and {b.shape} differ; citrus adds tensors of one shape")
        if operator == "Sub":
            b = _affine(lowering, f"{call.name}_negated", b, -1.0, 0.0)
        return lowering.emit(call.name, Add(), a, b)
    if isinstance(a, Activation) and isinstance(b, Constant):
        x, constant, constant_first = a, b, False
    elif isinstance(a, Constant) and isinstance(b, Activation):
        x, constant, constant_first = b, a, True
    else:
        raise Refusal("an operand is missing")
    if operator == "Add" and _take_bias(lowering, call, x, constant, call.input_names[0 if x is a else 1]):
        return x
    value = lowering.fixed(constant)
    if operator == "Add":
        return _affine(lowering, call.name, x, 1.0, value)
    if operator == "Sub":
        return _affine(lowering, call.name, x, -1.0 if constant_first else 1.0, value if constant_first else -value)
    if operator == "Mul":
        return _affine(lowering, call.name, x, value, 0.0)
    if constant_first or not value.all():
        raise Refusal("it divides by an activation or by 0")
    return _affine(lowering, call.name, x, 1.0 / value, 0.0)


def _take_bias(lowering: Lowering, call: Call, x: Activation, constant: Constant, operand: str) -> bool:
    """Makes `constant` the bias of the Conv, Gemm or MatMul that computed `operand`, if that is its role."""
    layer = lowering.without_bias.get(operand)
    if layer is None or lowering.consumers[operand] != 1:
        return False
    channels = 0 if isinstance(layer, nn.Conv2d) else len(x.shape) - 1
    size = x.shape[channels]
    wanted = tuple(size if axis == channels else 1 for axis in range(len(x.shape)))
    given = constant.value.shape
    if (1,) * (len(wanted) + 1 - len(given)) + given != (1, *wanted):
        return False
    layer.bias = lowering.parameter(constant, (size,))
    lowering.emitted.append(f"bias of {type(layer).__name__}")
    return True


def _affine(
    lowering: Lowering, name: str, x: Activation, scale: NDArray[np.float64] | float, shift: NDArray[np.float64] | float
) -> Activation:
    """scale * x + shift with constants that broadcast to a sample's shape, or to the batch's with a first axis of 1."""
    rank = len(x.shape)
    a, b = (_per_sample(np.asarray(v, dtype=np.float64), rank, x.shape) for v in (scale, shift))
    shape = np.broadcast_shapes(a.shape, b.shape)
    layer = Affine(*(torch.from_numpy(np.broadcast_to(v, shape).astype(np.float32)) for v in (a, b)))
    return lowering.emit(name, layer, x)


def _per_sample(value: NDArray[np.float64], rank: int, shape: tuple[int, ...]) -> NDArray[np.float64]:
    whole = value.reshape((1,) * max(rank + 1 - value.ndim, 0) + value.shape)
    if whole.ndim != rank + 1 or whole.shape[0] != 1 or any(c not in (1, s) for c, s in zip(whole.shape[1:], shape, strict=True)):
        raise Refusal(f"a constant of shape {value.shape} does not apply to inputs of shape {shape} one by one")
    return whole[0]


def _negate(lowering: Lowering, call: Call) -> Value:
    return _affine(lowering, call.name, call.activation(), -1.0, 0.0)


def _reshaped(lowering: Lowering, name: str, x: Activation, shape: Sequence[int]) -> Activation:
    return x if x.shape == tuple(shape) else lowering.emit(name, Reshape(shape), x)


def _flatten(lowering: Lowering, call: Call) -> Value:
    x = call.activation()
    axis = int(call.attributes.get("axis", 1))
    axis += len(x.shape) + 1 if axis < 0 else 0
    # at batch 1, Flatten(axis=0) is Flatten(axis=1); a later axis is, where all before it have one entry
    if math.prod(x.shape[: max(axis - 1, 0)]) != 1:
        raise Refusal(f"axis {axis} mixes the batch axis with axes of shape {x.shape}")
    return _reshaped(lowering, call.name, x, (math.prod(x.shape),))


def _reshape(lowering: Lowering, call: Call) -> Value:
    x = call.activation()
    target = list(call.integers(1, "shape") or ())
    if not target:
        raise Refusal("its shape is missing")
    whole = (1, *x.shape)
    if not call.attributes.get("allowzero", 0):
        target = [whole[i] if t == 0 and i < len(whole) else t for i, t in enumerate(target)]
    if target[0] == -1 and -1 not in target[1:]:
        target[0] = 1  # the batch axis
    if -1 in target:
        rest = math.prod(t for t in target if t != -1)
        target[target.index(-1)] = math.prod(whole) // rest if rest else 0
    if target[0] != 1 or math.prod(target) != math.prod(whole) or len(target) < 2:
        raise Refusal(f"it turns one input of shape {x.shape} into {tuple(target)}, which mixes the batch axis")
    return _reshaped(lowering, call.name, x, target[1:])


def _squeeze(lowering: Lowering, call: Call) -> Value:
    x = call.activation()
    given = call.integers(1, "axes")
    axes = {_axis(a, x) for a in given} if given is not None else {a for a, s in enumerate(x.shape) if s == 1}
    if any(x.shape[a] != 1 for a in axes):
        raise Refusal(f"axes {sorted(axes)} of shape {x.shape} do not all have one entry")
    return _reshaped(lowering, call.name, x, tuple(s for a, s in enumerate(x.shape) if a not in axes))


def _unsqueeze(lowering: Lowering, call: Call) -> Value:
    x = call.activation()
    axes = call.integers(1, "axes") or ()
    rank = len(x.shape) + 1 + len(axes)
    places = {a + rank if a < 0 else a for a in axes}
    if 0 in places:
        raise Refusal("it adds an axis in front of the batch axis")
    sizes = iter(x.shape)
    return _reshaped(lowering, call.name, x, tuple(1 if place in places else next(sizes) for place in range(1, rank)))


def _transpose(lowering: Lowering, call: Call) -> Value:
    x = call.activation()
    perm = tuple(call.attributes.get("perm", range(len(x.shape), -1, -1)))
    if perm[0] != 0:
        raise Refusal(f"perm {perm} moves the batch axis")
    return lowering.emit(call.name, Transpose(tuple(p - 1 for p in perm[1:])), x)


def _pad(lowering: Lowering, call: Call) -> Value:
    x = call.activation()
    mode = bytes(call.attributes.get("mode", b"constant")).decode()
    pads, value = call.integers(1, "pads") or (), call.constant(2)
    if mode != "constant":
        raise Refusal(f"mode {mode!r}; citrus pads with a constant")
    axes = call.integers(3, "axes")
    places = range(len(x.shape) + 1) if axes is None else [a % (len(x.shape) + 1) for a in axes]
    if len(pads) != 2 * len(places):
        raise Refusal(f"{len(pads)} pads for {len(places)} axes")
    whole = [0] * (2 * (len(x.shape) + 1))
    for i, place in enumerate(places):
        whole[place], whole[len(x.shape) + 1 + place] = pads[i], pads[len(places) + i]
    if min(whole) < 0 or whole[0] or whole[len(x.shape) + 1]:
        raise Refusal(f"pads {tuple(pads)} are negative or pad the batch axis")
    if not any(whole):
        return x
    fill = 0.0 if value is None else float(lowering.fixed(value).item())
    return lowering.emit(call.name, Pad(_torch_pads(whole)[:-2], fill), x)


def _concat(lowering: Lowering, call: Call) -> Value:
    parts = [v for v in call.inputs if isinstance(v, Activation)]
    if len(parts) != len(call.inputs):
        raise Refusal("it joins activations with constants")
    return lowering.emit(call.name, Concat(_axis(int(call.attributes["axis"]), parts[0])), *parts)


def _slice(lowering: Lowering, call: Call) -> Value:
    x = call.activation()
    starts, ends = call.integers(1, "starts") or (), call.integers(2, "ends") or ()
    axes = call.integers(3, "axes") or tuple(range(len(starts)))
    steps = call.integers(4, "steps") or (1,) * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if axis % (len(x.shape) + 1) == 0 and start == 0 and end >= 2**31 - 1 and step == 1:
            continue  # the whole batch
        place = _axis(axis, x)
        if step < 1:
            raise Refusal(f"step {step} runs backwards")
        first, stop, _ = slice(start, end, step).indices(x.shape[place])
        if stop <= first:
            raise Refusal(f"nothing is left of axis {axis}")
        if (first, stop, step) != (0, x.shape[place], 1):
            x = lowering.emit(call.name, Slice(place, first, stop, step), x)
    return x


def _split(lowering: Lowering, call: Call) -> tuple[Value, ...]:
    x = call.activation()
    place = _axis(int(call.attributes.get("axis", 0)), x)
    size, count = x.shape[place], len(call.output_names)
    step = math.ceil(size / count)
    sizes = call.integers(1, "split") or tuple(min(step, size - i * step) for i in range(count))
    if sum(sizes) != size or min(sizes) < 1 or len(sizes) != count:
        raise Refusal(f"parts {sizes} do not add up to {size}")
    starts = [sum(sizes[:i]) for i in range(count)]
    # a part that nobody uses is no node, but keeps its place
    return tuple(
        lowering.emit(call.name, Slice(place, start, start + part), x) if lowering.consumers[name] or count == 1 else x
        for name, start, part in zip(call.output_names, starts, sizes, strict=True)
    )


def _sum(lowering: Lowering, call: Call) -> Value:
    x = call.activation()
    for other in call.inputs[1:]:
        if not isinstance(other, Activation) or other.shape != x.shape:
            raise Refusal("citrus sums activations of one shape")
        x = lowering.emit(call.name, Add(), x, other)
    return x


def _dropped(lowering: Lowering, call: Call) -> Value:
    """Identity, and Dropout outside training."""
    training = call.constant(2)
    if training is not None and bool(training.value):
        raise Refusal("dropout is in training mode; export in evaluation mode")
    return call.activation()


def _cast(lowering: Lowering, call: Call) -> Value:
    if call.attributes["to"] != TensorProto.FLOAT:
        raise Refusal(f"it turns activations into {TensorProto.DataType.Name(call.attributes['to'])}; citrus reads float32")
    return call.activation()


def _softmax(lowering: Lowering, call: Call) -> Value:
    raise Refusal(
        "citrus certifies logits; a softmax changes the margins and hides them in rounding",
        f"Cut it off, the predicted class stays the same: onnx.utils.extract_model(FILE, NEW_FILE, [INPUT], [{call.input_names[0]!r}]).",
    )


def _tanh(lowering: Lowering, call: Call) -> Value:
    return lowering.emit(call.name, nn.Tanh(), call.activation())


RULES: Mapping[str, Rule] = {
    "Add": _arithmetic, "Sub": _arithmetic, "Mul": _arithmetic, "Div": _arithmetic, "Neg": _negate, "Sum": _sum,
    "Conv": _conv, "Gemm": _gemm, "MatMul": _matmul, "BatchNormalization": _batch_norm, "Tanh": _tanh,
    "MaxPool": _max_pool, "AveragePool": _average_pool, "ReduceMean": _reduce_mean,
    "GlobalAveragePool": _global_pool(nn.AvgPool2d), "GlobalMaxPool": _global_pool(nn.MaxPool2d),
    "Flatten": _flatten, "Reshape": _reshape, "Squeeze": _squeeze, "Unsqueeze": _unsqueeze, "Transpose": _transpose,
    "Pad": _pad, "Concat": _concat, "Slice": _slice, "Split": _split,
    "Identity": _dropped, "Dropout": _dropped, "Cast": _cast, "Softmax": _softmax, "LogSoftmax": _softmax,
}  # fmt: skip
"""Rules of our own; every other operator goes through onnx2torch and stands if that gives a canonical layer."""


# ---------------------------------------------------------------------------------------------------------- helpers


def _axis(axis: int, x: Activation) -> int:
    """An ONNX axis as a per-sample axis of `x`; the batch axis is refused."""
    rank = len(x.shape) + 1
    place = axis + rank if axis < 0 else axis
    if not 1 <= place < rank:
        raise Refusal(f"axis {axis} is the batch axis or outside shape {x.shape}")
    return place - 1


def _float32(constant: Constant) -> NDArray[np.float32]:
    if constant.value.dtype != np.float32:
        raise Refusal(f"its constant {constant.tensor or ''} has type {constant.value.dtype}; citrus reads float32")
    return constant.value


def _view(value: NDArray[np.float32], transpose: bool, scale: float, shape: Sequence[int]) -> NDArray[np.float32]:
    turned = value.T if transpose else value
    try:
        return np.array(turned * np.float32(scale), dtype=np.float32, order="C").reshape(shape)
    except ValueError:
        raise Refusal(f"weights of shape {value.shape} do not fit {tuple(shape)}") from None


def _describe(layer: nn.Module) -> str:
    if isinstance(layer, Affine):
        return "Affine"
    if isinstance(layer, Reshape):
        return f"Reshape{layer.shape}"
    if isinstance(layer, Transpose):
        return f"Transpose{layer.axes}"
    return type(layer).__name__
