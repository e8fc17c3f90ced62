"""Network -> ModelProto: a rule table {layer: ONNX nodes}, and BatchNorm folded into the layer in front of it."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from citrus_tool.errors import UnsupportedNetworkError, UsageError
from citrus_tool.network import (
    INPUT,
    Add,
    Affine,
    Concat,
    GraphBuilder,
    MatMul,
    Multiply,
    Network,
    Node,
    Pad,
    Pointwise,
    Reshape,
    Select,
    Slice,
    Transpose,
    find_rule,
    size,
)
from citrus_tool.onnx_io.export_pointwise import CONSTANTS, FORMS

OPSETS = range(13, 18)
"""The node forms written here (axes of Slice and pads of Pad as inputs) hold for these opsets."""


@dataclass(kw_only=True)
class Emission:
    """The ONNX nodes and initializers written so far; `outputs` maps a Network node to the ONNX value it became."""

    outputs: dict[str, str]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[TensorProto] = field(default_factory=list)
    known: dict[int, str] = field(default_factory=dict)

    def node(self, name: str, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Adds a node with one output, which has its name; returns the name."""
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    def weights(self, name: str, tensor: Tensor) -> str:
        """An initializer of a tensor of any shape; a tensor that several layers share is written once."""
        if id(tensor) not in self.known:
            self.known[id(tensor)] = self.constant(name, tensor.detach().cpu().float().numpy())
        return self.known[id(tensor)]

    def constant(self, name: str, value: NDArray[Any]) -> str:
        """Adds an initializer with the values of an array of any shape; returns its name."""
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name


def to_proto(network: Network, *, input_name: str, output_name: str, opset: int, ir_version: int) -> onnx.ModelProto:
    """The whole graph as ONNX; the same network gives the same bytes.

    Raises UsageError for an opset outside 13 to 17, UnsupportedNetworkError (node, layer) for settings of a layer
    that ONNX has no exact form for.
    """
    if opset not in OPSETS:
        raise UsageError(f"opset {opset} cannot be written; choose {OPSETS.start} to {OPSETS.stop - 1}.")
    names = Counter([input_name, output_name, *(n.name for n in network.nodes)])
    clash = next((name for name, count in names.items() if count > 1), None)
    if clash is not None:
        raise UsageError(f"the name {clash!r} is taken twice among input, output and layers; choose another one.")
    emission = Emission(outputs={INPUT: input_name})
    for node in network.nodes:
        inputs = [emission.outputs[i] for i in node.inputs]
        rule = find_rule(RULES, node)
        emission.outputs[node.name] = rule(emission, node, inputs, network)
    last = emission.outputs[network.output_name]
    for written in emission.nodes:
        written.output[:] = [output_name if name == last else name for name in written.output]
        written.input[:] = [output_name if name == last else name for name in written.input]
    graph = helper.make_graph(
        emission.nodes,
        "citrus",
        [helper.make_tensor_value_info(input_name, TensorProto.FLOAT, ["batch", *network.input_shape])],
        [helper.make_tensor_value_info(output_name, TensorProto.FLOAT, ["batch", network.num_classes])],
        emission.initializers,
    )
    return helper.make_model(
        graph, producer_name="citrus", ir_version=ir_version, opset_imports=[helper.make_opsetid("", opset)]
    )


def fold_batch_norm(network: Network) -> Network:
    """An equal Network in which each BatchNorm that alone follows a Conv2d or Linear is merged into it.

    Running statistics are used (evaluation mode); the arithmetic is float64, rounded once. A BatchNorm elsewhere
    stays. A layer that several nodes share is untied where one of them is followed by a BatchNorm.
    """
    twin = copy.deepcopy(network).eval()
    users = Counter(name for node in twin.nodes for name in node.inputs)
    users[twin.output_name] += 1
    by_name = {node.name: node for node in twin.nodes}
    folded: dict[str, tuple[Node, nn.Module]] = {}  # BatchNorm node -> the node in front, the merged layer
    for node in twin.nodes:
        front = by_name.get(node.inputs[0]) if isinstance(node.layer, nn.BatchNorm1d | nn.BatchNorm2d) else None
        if front is not None and isinstance(front.layer, nn.Conv2d | nn.Linear) and users[front.name] == 1:
            folded[node.name] = (front, _merged(front.layer, node.layer))
    skipped = {front.name for front, _ in folded.values()}
    builder = GraphBuilder(twin.input_shape)
    names = {INPUT: INPUT}
    for node in twin.nodes:
        if node.name in skipped:
            continue
        source, layer = folded.get(node.name, (node, node.layer))
        names[node.name] = builder.add(layer, *(names[i] for i in source.inputs), name=twin.target_of(source.name))
    return builder.build(names[twin.output_name]).train(network.training)


def _merged(layer: nn.Conv2d | nn.Linear, norm: nn.Module) -> nn.Module:
    assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
    scale, shift = (t.double() for t in batch_norm_affine(norm))
    merged = copy.deepcopy(layer)
    weight = layer.weight.detach().double() * scale.reshape(-1, *(1,) * (layer.weight.dim() - 1))
    bias = shift + scale * layer.bias.detach().double() if layer.bias is not None else shift
    merged.weight = nn.Parameter(weight.to(layer.weight.dtype))
    merged.bias = nn.Parameter(bias.to(layer.weight.dtype))
    return merged


def batch_norm_affine(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """(scale, shift), (C,) float64, of a BatchNorm in evaluation mode: y = scale * x + shift.

    Raises UnsupportedNetworkError for one without running statistics.
    """
    if norm.running_mean is None or norm.running_var is None:
        raise UnsupportedNetworkError("a BatchNorm without running statistics has no fixed function.")
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() * scale
    return scale, shift + norm.bias.detach().double() if norm.bias is not None else shift


# -------------------------------------------------------------------------------------------------- one rule a layer


def _refuse(node: Node, what: str) -> UnsupportedNetworkError:
    return UnsupportedNetworkError(f"node {node.name!r} ({type(node.layer).__name__}) cannot be exported: {what}.")


def _conv(emission: Emission, node: Node, inputs: list[str], network: Network) -> str:
    layer = node.layer
    assert isinstance(layer, nn.Conv2d)
    if layer.padding_mode != "zeros":
        raise _refuse(node, f"padding mode {layer.padding_mode!r}")
    if layer.padding == "same":
        totals = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        pads = [*(t // 2 for t in totals), *(t - t // 2 for t in totals)]
    else:
        pads = [0, 0, 0, 0] if isinstance(layer.padding, str) else [*layer.padding, *layer.padding]
    return emission.node(
        node.name,
        "Conv",
        inputs + _weight_and_bias(emission, node, network),
        kernel_shape=layer.kernel_size,
        strides=layer.stride,
        dilations=layer.dilation,
        group=layer.groups,
        pads=pads,
    )


def _linear(emission: Emission, node: Node, inputs: list[str], network: Network) -> str:
    if len(node.shape) != 1:
        raise _refuse(node, f"it is applied along the last axis of shape {node.shape}; flatten in front of it")
    return emission.node(node.name, "Gemm", inputs + _weight_and_bias(emission, node, network), transB=1)


def _weight_and_bias(emission: Emission, node: Node, network: Network) -> list[str]:
    target, layer = network.target_of(node.name), node.layer
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    names = [emission.weights(f"{target}.weight", layer.weight)]
    return names if layer.bias is None else [*names, emission.weights(f"{target}.bias", layer.bias)]


def _batch_norm(emission: Emission, node: Node, inputs: list[str], network: Network) -> str:
    layer, target = node.layer, network.target_of(node.name)
    assert isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)
    if layer.running_mean is None or layer.running_var is None or layer.momentum is None:
        raise _refuse(node, "it has no running statistics, or averages them without a momentum")
    weight = torch.ones(layer.num_features) if layer.weight is None else layer.weight
    bias = torch.zeros(layer.num_features) if layer.bias is None else layer.bias
    tensors = {"weight": weight, "bias": bias, "running_mean": layer.running_mean, "running_var": layer.running_var}
    constants = [emission.weights(f"{target}.{name}", tensor) for name, tensor in tensors.items()]
    return emission.node(
        node.name, "BatchNormalization", inputs + constants, epsilon=layer.eps, momentum=1.0 - layer.momentum
    )


def _affine(emission: Emission, node: Node, inputs: list[str], network: Network) -> str:
    layer, value = node.layer, inputs[0]
    assert isinstance(layer, Affine)
    target = network.target_of(node.name)
    shifts = bool(layer.shift.any())
    if not bool((layer.scale == 1).all()) or not shifts:
        name = f"{node.name}_scaled" if shifts else node.name
        value = emission.node(name, "Mul", [value, emission.weights(f"{target}.scale", layer.scale)])
    if shifts:
        value = emission.node(node.name, "Add", [value, emission.weights(f"{target}.shift", layer.shift)])
    return value


def _plain(operator: str, attributes: Callable[[Any], Mapping[str, Any]] = lambda layer: {}) -> Callable[..., str]:
    def rule(emission: Emission, node: Node, inputs: list[str], network: Network) -> str:
        return emission.node(node.name, operator, inputs, **attributes(node.layer))

    return rule


def _reshape(emission: Emission, node: Node, inputs: list[str], network: Network) -> str:
    if len(node.shape) == 1:
        return emission.node(node.name, "Flatten", inputs, axis=1)
    shape = emission.constant(f"{node.name}_shape", np.array([-1, *node.shape], dtype=np.int64))
    return emission.node(node.name, "Reshape", [*inputs, shape])


def _pool(emission: Emission, node: Node, inputs: list[str], network: Network) -> str:
    layer = node.layer
    assert isinstance(layer, nn.AvgPool2d | nn.MaxPool2d)
    pads = [*_pair(layer.padding), *_pair(layer.padding)]
    window = {
        "kernel_shape": _pair(layer.kernel_size),
        "strides": _pair(layer.stride),
        "pads": pads,
        "ceil_mode": int(layer.ceil_mode),
    }
    if isinstance(layer, nn.MaxPool2d):
        return emission.node(node.name, "MaxPool", inputs, dilations=_pair(layer.dilation), **window)
    if layer.divisor_override is not None:
        raise _refuse(node, "divisor_override")
    return emission.node(node.name, "AveragePool", inputs, count_include_pad=int(layer.count_include_pad), **window)


def _pad(emission: Emission, node: Node, inputs: list[str], network: Network) -> str:
    layer = node.layer
    assert isinstance(layer, Pad)
    begins, ends = list(layer.pads[::2])[::-1], list(layer.pads[1::2])[::-1]
    front = [0] * (len(node.shape) + 1 - len(begins))  # the batch axis and leading axes
    pads = emission.constant(f"{node.name}_pads", np.array([*front, *begins, *front, *ends], dtype=np.int64))
    value = emission.constant(f"{node.name}_value", np.array(layer.value, dtype=np.float32))
    return emission.node(node.name, "Pad", [*inputs, pads, value])


def _slice(emission: Emission, node: Node, inputs: list[str], network: Network) -> str:
    layer = node.layer
    assert isinstance(layer, Slice)
    parts = {"starts": layer.start, "ends": layer.stop, "axes": layer.axis + 1, "steps": layer.step}
    names = [emission.constant(f"{node.name}_{k}", np.array([v], dtype=np.int64)) for k, v in parts.items()]
    return emission.node(node.name, "Slice", inputs + names)


def _select(emission: Emission, node: Node, inputs: list[str], network: Network) -> str:
    """Gather on the flattened sample, with one zero behind it where an entry of the output is 0."""
    layer = node.layer
    assert isinstance(layer, Select)
    entries, index = size(network.shape_of(node.inputs[0])), layer.index.cpu()
    flat = emission.node(f"{node.name}_flat", "Flatten", inputs, axis=1)
    if bool((index < 0).any()):
        pads = emission.constant(f"{node.name}_pads", np.array([0, 0, 0, 1], dtype=np.int64))
        flat = emission.node(f"{node.name}_zero", "Pad", [flat, pads])
    places = emission.constant(f"{node.name}_index", torch.where(index < 0, entries, index).numpy())
    return emission.node(node.name, "Gather", [flat, places], axis=1)


def _pointwise(emission: Emission, node: Node, inputs: list[str], network: Network) -> str:
    layer, names = node.layer, {"x": inputs[0], "y": node.name}
    assert isinstance(layer, Pointwise)
    for step in FORMS[layer.kind].split("; "):
        output, right = step.split(" = ")
        operator, *sources = right.split()
        for source in sources:
            if source in CONSTANTS and source not in names:
                value = np.array(CONSTANTS[source], dtype=np.float32)
                names[source] = emission.constant(f"{node.name}_{source.lower()}", value)
        name = names.setdefault(output, f"{node.name}_{output}")
        emission.node(name, operator, [names[source] for source in sources])
    return node.name


def _pair(value: int | Sequence[int]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


RULES: Mapping[type[nn.Module], Callable[..., str]] = {
    nn.Conv2d: _conv,
    nn.Linear: _linear,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    Affine: _affine,
    nn.ReLU: _plain("Relu"),
    nn.LeakyReLU: _plain("LeakyRelu", lambda layer: {"alpha": layer.negative_slope}),
    nn.Sigmoid: _plain("Sigmoid"),
    nn.Tanh: _plain("Tanh"),
    Add: _plain("Add"),
    Multiply: _plain("Mul"),
    MatMul: _plain("MatMul"),
    Reshape: _reshape,
    Transpose: _plain("Transpose", lambda layer: {"perm": [0, *(a + 1 for a in layer.axes)]}),
    nn.AvgPool2d: _pool,
    nn.MaxPool2d: _pool,
    Pad: _pad,
    Concat: _plain("Concat", lambda layer: {"axis": layer.axis + 1}),
    Slice: _slice,
    Select: _select,
    Pointwise: _pointwise,
}
