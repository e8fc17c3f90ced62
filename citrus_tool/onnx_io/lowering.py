"""The terms in which a graph is lowered: values, bindings to the file's tensors, and the network under construction.

The graph is read at batch 1 and its batch axis then freed: shapes that a file computes or states as [1, n] lose
their first axis. The parity check at batch 64 (runner.py) shows where that reading would be wrong.

Which constants are weights is decided by role: the constant operand of Conv, Gemm and MatMul, the bias that these
carry or that an Add right behind them adds (one value per output channel or feature, no other user of the sum's
operand), scale and offset of BatchNormalization. Those become nn.Parameters, bound to the tensor of the file that
they came from; one tensor is one parameter, however many nodes use it. Every other constant, as in normalisation,
becomes an Affine layer that no training touches. A weight whose tensor also plays another role (a constant, or the
transposed weight of another node), or that the file computes from others, is kept but frozen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from citrus_tool.network import (
    CANONICAL,
    Affine,
    GraphBuilder,
    Network,
    Reshape,
    Transpose,
)

ADVICE = "Re-export the network without it; `citrus inspect` lists every node and what supports it."


class RefusedNodeError(Exception):
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
    """A value of any shape known at import. `tensor` names the file's tensor whose plain or `transposed` content it is,
    if any.
    """

    value: NDArray[Any]
    tensor: str | None = None
    transposed: bool = False


Value = Activation | Constant


@dataclass(frozen=True, kw_only=True)
class TensorView:
    """How a parameter shows a tensor of the file: scale * tensor, transposed or not, in the shape `shape`."""

    tensor: str
    transposed: bool
    scale: float
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Binding:
    """Entry `parameter` of the network's state dict is the view `view` of the file's tensor."""

    parameter: str
    view: TensorView


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
            raise RefusedNodeError("its first operand is a constant; citrus reads layers applied to activations")
        return self.inputs[0]

    def constant(self, position: int) -> Constant | None:
        """Input `position`, which must be known at import, or None where it is absent."""
        value = self.inputs[position] if position < len(self.inputs) else None
        if isinstance(value, Activation):
            raise RefusedNodeError(f"its input {self.input_names[position]!r} is computed from the network's input")
        return value

    def weights(self, position: int) -> Constant:
        """Input `position`, which must be known at import."""
        value = self.constant(position)
        if value is None:
            raise RefusedNodeError("its weights are missing")
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
    """The state of one pass over a graph: the network built so far and where its parameters came from.

    `statistics`: running means and variances (C,), and where the file has them.
    """

    builder: GraphBuilder
    opset: int
    consumers: Counter[str]
    parameters: dict[TensorView, nn.Parameter] = field(default_factory=dict)
    statistics: list[tuple[TensorView, Tensor]] = field(default_factory=list)
    fixed_tensors: set[str] = field(default_factory=set)
    without_bias: dict[str, nn.Conv2d | nn.Linear] = field(default_factory=dict)
    emitted: list[str] = field(default_factory=list)
    created: list[nn.Parameter] = field(default_factory=list)

    def emit(self, name: str, layer: nn.Module, *inputs: Activation) -> Activation:
        """Appends `layer`; its output shape comes from running it on zeros, two at a time to see the batch axis."""
        if not isinstance(layer, CANONICAL):
            raise RefusedNodeError(f"onnx2torch reads it as {type(layer).__name__}, for which citrus has no layer")
        try:
            with torch.no_grad():
                out = layer.eval()(*(torch.zeros(2, *x.shape) for x in inputs))
        except (RuntimeError, ValueError, IndexError) as error:
            shapes = ", ".join(str(x.shape) for x in inputs)
            raise RefusedNodeError(
                f"it does not fit its input of shape {shapes} ({str(error).splitlines()[0]})"
            ) from None
        self.emitted.append(_describe(layer))
        return Activation(
            name=self.builder.add(layer, *(x.name for x in inputs), name=name), shape=tuple(out.shape[1:])
        )

    def parameter(
        self, constant: Constant, shape: Sequence[int], *, transpose: bool = False, scale: float = 1.0
    ) -> nn.Parameter:
        """The trainable weight that shows `constant`; the same object for the same view of the same tensor."""
        value = torch.from_numpy(_view(float32(constant), transpose, scale, shape))
        if constant.tensor is None:
            self.created.append(nn.Parameter(value, requires_grad=False))
            return self.created[-1]
        view = TensorView(
            tensor=constant.tensor, transposed=constant.transposed ^ transpose, scale=scale, shape=tuple(shape)
        )
        if view not in self.parameters:
            self.parameters[view] = nn.Parameter(value)
            self.created.append(self.parameters[view])
        return self.parameters[view]

    def statistic(self, constant: Constant, shape: Sequence[int]) -> Tensor:
        """A running mean or variance (C,): no gradient, but written back to the file."""
        value = torch.from_numpy(_view(float32(constant), False, 1.0, shape))
        if constant.tensor is not None:
            view = TensorView(tensor=constant.tensor, transposed=constant.transposed, scale=1.0, shape=tuple(shape))
            self.statistics.append((view, value))
        return value

    def fixed(self, constant: Constant) -> NDArray[np.float64]:
        """A constant of any shape that training must not touch, in float64 so that 1/c is rounded once."""
        if constant.tensor is not None:
            self.fixed_tensors.add(constant.tensor)
        return float32(constant).astype(np.float64)

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


Rule = Callable[[Lowering, Call], Value | tuple[Value, ...]]
"""What becomes of a node: the values of its outputs; raises RefusedNodeError."""


def float32(constant: Constant) -> NDArray[np.float32]:
    """The constant's numbers, of any shape, which must be float32 in the file."""
    if constant.value.dtype != np.float32:
        raise RefusedNodeError(
            f"its constant {constant.tensor or 'operand'!r} has type {constant.value.dtype}; citrus reads float32"
        )
    return constant.value


def _view(value: NDArray[np.float32], transpose: bool, scale: float, shape: Sequence[int]) -> NDArray[np.float32]:
    turned = value.T if transpose else value
    try:
        return np.array(turned * np.float32(scale), dtype=np.float32, order="C").reshape(shape)
    except ValueError:
        raise RefusedNodeError(f"weights of shape {value.shape} do not fit {tuple(shape)}") from None


def _describe(layer: nn.Module) -> str:
    if isinstance(layer, Affine):
        return "Affine"
    if isinstance(layer, Reshape):
        return f"Reshape{layer.shape}"
    if isinstance(layer, Transpose):
        return f"Transpose{layer.axes}"
    return type(layer).__name__
