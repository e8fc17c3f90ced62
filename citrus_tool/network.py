"""Network: a torch.fx graph of canonical layers, and the one walk over it.

A graph has many readings (concrete, interval, linear, optimised). A reading is a rule table
{layer type: rule}; `walk` applies it from the input on, `walk_back` from a node back to the input.
A new layer is one class here and one rule per table; a layer without a rule is an error that names
the node (after jax_verify's src/ibp.py).

All shapes in layers and nodes are per sample: the batch axis is axis 0 of every tensor and is free.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from citrus_tool.choices import Arithmetic
from citrus_tool.elementwise import FUNCTIONS
from citrus_tool.errors import UnsupportedNetworkError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Which runs of a network its bounds speak of (docs/soundness.md).

    Attributes:
        arithmetic: `float32`: every run of the file in float32, in any order of summation; `real`: real arithmetic.
        rounds_input: with float32, the file gets the box's points rounded to float32 (x + u), not float32 points of it.
    """

    arithmetic: Arithmetic = "real"
    rounds_input: bool = False


REAL = Evaluation()
"""Real arithmetic."""


class Affine(nn.Module):
    """Elementwise y = scale * x + shift; constants (*shape,) per sample, or broadcastable to it, never trained.

    Normalisation, and Add/Sub/Mul/Div with a constant that is not a weight. `exact`: stands for something that rounds
    nothing, whatever arithmetic the file is run in (the clip layers).
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Tensor, shift: Tensor, *, exact: bool = False) -> None:
        super().__init__()
        self.exact = exact
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


class Add(nn.Module):
    """Sum of two tensors of one shape (residual connection)."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class Reshape(nn.Module):
    """Per-sample reshape to `shape` (fully known); Flatten is Reshape to one axis."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], *self.shape)


class Transpose(nn.Module):
    """Permutes the per-sample axes; `axes` counts from 0 without the batch axis."""

    def __init__(self, axes: Sequence[int]) -> None:
        super().__init__()
        self.axes = tuple(axes)

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, *(a + 1 for a in self.axes))


class Pad(nn.Module):
    """Constant padding; `pads` as torch.nn.functional.pad takes it (last axis first), batch axis untouched."""

    def __init__(self, pads: Sequence[int], value: float = 0.0) -> None:
        super().__init__()
        self.pads = tuple(pads)
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pad(x, self.pads, value=self.value)


class Concat(nn.Module):
    """Concatenation along per-sample axis `axis` (0 is the first after the batch axis)."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, *xs: Tensor) -> Tensor:
        return torch.cat(xs, dim=self.axis + 1)


class Slice(nn.Module):
    """x[start:stop:step] along per-sample axis `axis`; 0 <= start < stop <= size, step >= 1."""

    def __init__(self, axis: int, start: int, stop: int, step: int = 1) -> None:
        super().__init__()
        self.axis, self.start, self.stop, self.step = axis, start, stop, step

    def forward(self, x: Tensor) -> Tensor:
        index = [slice(None)] * x.dim()
        index[self.axis + 1] = slice(self.start, self.stop, self.step)
        return x[tuple(index)]


class Select(nn.Module):
    """out[i] = x.flat[index[i]], or 0 where index[i] is -1: moves, repeats and drops entries.

    `index` (*shape,) is int64 of the output's shape; it counts in the flattened sample. Gather, Expand, Tile, Resize
    to the nearest entry, reflected and edge padding, and the zeros between the entries of a transposed convolution.
    """

    index: Tensor

    def __init__(self, index: Tensor) -> None:
        super().__init__()
        self.register_buffer("index", index)

    def forward(self, x: Tensor) -> Tensor:
        taken = x.flatten(1)[:, self.index.clamp(min=0).flatten()].masked_fill(self.index.flatten() < 0, 0.0)
        return taken.reshape(len(x), *self.index.shape)


class Pointwise(nn.Module):
    """A function of one number, entry by entry: `kind` is one of `elementwise.FUNCTIONS`.

    Raises UnsupportedNetworkError for another kind.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        if kind not in FUNCTIONS:
            raise UnsupportedNetworkError(f"no function is called {kind!r}; there are {', '.join(FUNCTIONS)}.")
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        return FUNCTIONS[self.kind](x)


class Multiply(nn.Module):
    """Product of two tensors of one shape, entry by entry."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x * y


class MatMul(nn.Module):
    """Matrix products x @ y over the last two axes, (..., n, k) and (..., k, m), per sample; leading axes are alike.

    Raises UnsupportedNetworkError where they are not.
    """

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if x.shape[:-2] != y.shape[:-2] or x.dim() < 3:
            raise UnsupportedNetworkError(
                f"a product of matrices {tuple(x.shape[1:])} and {tuple(y.shape[1:])}: expand their leading axes first."
            )
        return x @ y


CANONICAL: tuple[type[nn.Module], ...] = (
    nn.Conv2d,
    nn.Linear,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    Affine,
    nn.ReLU,
    nn.LeakyReLU,
    nn.Sigmoid,
    nn.Tanh,
    Add,
    Reshape,
    Transpose,
    nn.AvgPool2d,
    nn.MaxPool2d,
    Pad,
    Concat,
    Slice,
    Select,
    Pointwise,
    Multiply,
    MatMul,
)
"""Every layer type that a Network may hold. Conv2d pads with zeros; BatchNorm is read with its running statistics."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """One layer application: `inputs` are names of earlier nodes, INPUT is the network's input."""

    name: str
    layer: nn.Module
    inputs: tuple[str, ...]
    shape: tuple[int, ...]  # per sample, of the output


INPUT = "input"


class Network(nn.Module):
    """A classifier from pixel space to logits.

    Attributes:
        graph_module: torch.fx graph whose nodes call canonical layers only; one input, one output.
        input_shape: per-sample shape of the input, (C, H, W) for images.
        nodes: the layers in topological order, with per-sample output shapes.
        num_classes: size of the output vector.
        evaluation: which runs of it bounds speak of.

    Raises UnsupportedNetworkError where the output is not one vector per input.
    """

    def __init__(self, graph_module: fx.GraphModule, input_shape: Sequence[int]) -> None:
        super().__init__()
        self.evaluation = REAL
        self.graph_module = graph_module
        self.input_shape = tuple(input_shape)
        self._edges = _edges(graph_module)
        self._node_shapes: dict[str, tuple[int, ...]] = {}
        self._node_shapes = self._shapes()
        final = self._node_shapes[self.output_name]
        if len(final) != 1:
            raise UnsupportedNetworkError(
                f"the output has shape {final} per input; a classifier gives a vector of logits."
            )
        self.num_classes = final[0]

    @property
    def output_name(self) -> str:
        """Name of the node that gives the logits."""
        return self._edges[-1][0]

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The layers in topological order."""
        return tuple(
            Node(
                name=name,
                layer=self.graph_module.get_submodule(target),
                inputs=inputs,
                shape=self._node_shapes.get(name, ()),
            )
            for name, target, inputs in self._edges
        )

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Per-sample shape of a node's output, or of the input for INPUT."""
        return self.input_shape if name == INPUT else self._node_shapes[name]

    def target_of(self, name: str) -> str:
        """Module path of a node's layer inside `graph_module` (several nodes may share one)."""
        return next(target for node, target, _ in self._edges if node == name)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.graph_module(x)
        return out

    def frozen(
        self, *, dtype: torch.dtype, device: torch.device | str = "cpu", evaluation: Evaluation | None = None
    ) -> Network:
        """A copy in evaluation mode without gradients, in `dtype` on `device`; `evaluation` None: as it is."""
        twin = copy.deepcopy(self).to(device=device, dtype=dtype).eval()
        twin.evaluation = evaluation or self.evaluation
        for parameter in twin.parameters():
            parameter.requires_grad_(False)
        return twin

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        parameter = next((t for t in [*self.parameters(), *self.buffers()] if t.is_floating_point()), None)
        dtype, device = (
            (parameter.dtype, parameter.device) if parameter is not None else (torch.float32, torch.device("cpu"))
        )
        was_training = self.training
        self.eval()
        values: dict[str, Tensor] = {}
        with torch.no_grad():
            # batch of 2: a batch axis fixed to 1 inside the graph shows here
            walk(self, CONCRETE, torch.zeros(2, *self.input_shape, dtype=dtype, device=device), record=values)
        self.train(was_training)
        for name, value in values.items():
            if value.shape[0] != 2:
                raise UnsupportedNetworkError(
                    f"node {name!r} mixes the batch axis: batch of 2 became {tuple(value.shape)}."
                )
        return {name: tuple(value.shape[1:]) for name, value in values.items()}


def _edges(graph_module: fx.GraphModule) -> list[tuple[str, str, tuple[str, ...]]]:
    """(node, module path, input nodes) in topological order; the placeholder is INPUT. Raises for anything else."""
    edges: list[tuple[str, str, tuple[str, ...]]] = []
    names: dict[fx.Node, str] = {}
    for node in graph_module.graph.nodes:
        if node.op == "placeholder":
            if names:
                raise UnsupportedNetworkError("the network has several inputs; citrus reads classifiers with one.")
            names[node] = INPUT
        elif node.op == "call_module":
            layer = graph_module.get_submodule(str(node.target))
            if not isinstance(layer, CANONICAL):
                raise UnsupportedNetworkError(f"node {node.name!r} ({type(layer).__name__}) is not a canonical layer.")
            names[node] = node.name
            edges.append((node.name, str(node.target), tuple(names[a] for a in node.args)))
        elif node.op == "output":
            if names[node.args[0]] != edges[-1][0]:
                raise UnsupportedNetworkError("the network has nodes after its output.")
        else:
            raise UnsupportedNetworkError(f"node {node.name!r}: {node.op} is not allowed in a canonical graph.")
    return edges


class GraphBuilder:
    """Builds a Network node by node.

    >>> builder = GraphBuilder((1, 8, 8))
    >>> flat = builder.add(Reshape((64,)))
    >>> out = builder.add(nn.Linear(64, 10), flat)
    >>> network = builder.build()
    """

    def __init__(self, input_shape: Sequence[int]) -> None:
        self._input_shape = tuple(input_shape)
        self._root = nn.Module()
        self._graph = fx.Graph()
        self._values: dict[str, fx.Node] = {INPUT: self._graph.placeholder("x")}
        self._targets: dict[int, str] = {}
        self._last = INPUT

    def add(self, layer: nn.Module, *inputs: str, name: str | None = None) -> str:
        """Appends `layer`, fed by `inputs` (default: the last node added); returns the node's name.

        A layer object that is added twice is one shared module.
        """
        target = self._targets.get(id(layer))
        if target is None:
            target = (
                f"{len(self._targets)}_{type(layer).__name__.lower()}"
                if name is None
                else _identifier(name, self._root)
            )
            target = target if not target[0].isdigit() else f"n{target}"
            self._root.add_module(target, layer)
            self._targets[id(layer)] = target
        node = self._graph.call_module(target, tuple(self._values[i] for i in (inputs or (self._last,))))
        self._values[node.name] = node
        self._last = node.name
        return node.name

    def build(self, output: str | None = None, *, like: Network | None = None) -> Network:
        """Closes the graph at node `output` (default: the last one) and drops nodes that do not reach it.

        Bounds of the new network speak of the runs that those of `like` do.
        """
        self._graph.output(self._values[output or self._last])
        module = fx.GraphModule(self._root, self._graph)
        module.graph.eliminate_dead_code()
        module.recompile()
        network = Network(module, self._input_shape)
        network.evaluation = REAL if like is None else like.evaluation
        return network


def _identifier(name: str, root: nn.Module) -> str:
    clean = "".join(ch if ch.isalnum() else "_" for ch in name) or "node"
    clean = f"n{clean}" if clean[0].isdigit() else clean
    taken, candidate, count = set(dict(root.named_children())), clean, 1
    while candidate in taken or hasattr(nn.Module, candidate):
        candidate, count = f"{clean}_{count}", count + 1
    return candidate


def chain(layers: Sequence[nn.Module], input_shape: Sequence[int]) -> Network:
    """A network that applies `layers` one after the other."""
    builder = GraphBuilder(input_shape)
    for layer in layers:
        builder.add(layer)
    return builder.build()


Rule = Callable[..., Any]
Rules = Mapping[type[nn.Module], Rule]


def find_rule(rules: Rules, node: Node) -> Rule:
    """The rule for a node's layer; raises UnsupportedNetworkError naming node and layer when the table has none."""
    rule = rules.get(type(node.layer))
    if rule is None:
        raise UnsupportedNetworkError(f"node {node.name!r}: this analysis has no rule for {type(node.layer).__name__}.")
    return rule


def walk(
    network: Network,
    rules: Rules,
    x: T,
    *,
    record: dict[str, T] | None = None,
    stop: str | None = None,
    start: str = INPUT,
) -> T:
    """Reads the graph from the input on: value(node) = rules[type(layer)](layer, *values of its inputs).

    Args:
        x: the value at `start` (a tensor, a Box, a set of linear bounds, whatever the rules work on).
        record: filled with every node's value when given; otherwise values are freed after their last use.
        stop: name of the node whose value is wanted; default: the output. `start` returns x.
        start: the node to read on from; every later node must depend on it and on later ones alone.
    """
    nodes = network.nodes
    if start != INPUT:
        nodes = nodes[1 + next(index for index, node in enumerate(nodes) if node.name == start) :]
    last_use: dict[str, str] = {}
    for node in nodes:
        for name in node.inputs:
            last_use[name] = node.name
    values: dict[str, T] = {start: x}
    if stop == start:
        return x
    value = x
    for node in nodes:
        value = find_rule(rules, node)(node.layer, *(values[i] for i in node.inputs))
        values[node.name] = value
        if record is not None:
            record[node.name] = value
        if node.name == stop:
            return value
        for name in set(node.inputs):
            if last_use[name] == node.name:
                del values[name]
    return value


def walk_back(
    network: Network, rules: Mapping[type[nn.Module], Rule], seed: T, *, start: str, merge: Callable[[T, T], T]
) -> T:
    """Reads the graph from node `start` back to the input.

    rules[type(layer)](layer, node, value at its output) gives the tuple of values at its inputs; a node
    with several users gets their values merged.

    Returns: the value at INPUT.
    """
    pending: dict[str, T] = {start: seed}
    for node in reversed(network.nodes):
        if node.name not in pending:
            continue
        value = pending.pop(node.name)
        for name, part in zip(node.inputs, find_rule(rules, node)(node.layer, node, value), strict=True):
            pending[name] = merge(pending[name], part) if name in pending else part
    return pending[INPUT]


def _call(layer: nn.Module, *xs: Tensor) -> Tensor:
    out: Tensor = layer(*xs)
    return out


CONCRETE: Rules = dict.fromkeys(CANONICAL, _call)
"""The concrete reading: layers applied to tensors."""


def size(shape: Sequence[int]) -> int:
    """Number of entries of a tensor of per-sample shape `shape`."""
    return math.prod(shape)
