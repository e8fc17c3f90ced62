"""Rows carried backward through the graph: the rule table of CROWN.

Zhang et al. 2018 (CROWN), section 3.2.
Differs from the paper in: (1) any graph of canonical layers, on dense maps or windows (rows.py); (2) every step lowers
the rows' `offset` by its own rounding error (docs/soundness.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from citrus_tool.bounds.interval import batch_norm_affine
from citrus_tool.bounds.pools import MaxPoolRelaxation, Pool
from citrus_tool.bounds.relaxation import Lines, ProductRelaxation, Relaxation
from citrus_tool.bounds.rounding import OWN, PER_NODE, SAFETY, gamma, layer_error, magnitude
from citrus_tool.bounds.rows import Pair, Rows, Shape, Window, inner, merge
from citrus_tool.bounds.transposed import conv_transpose
from citrus_tool.errors import UnsupportedNetworkError
from citrus_tool.network import (
    INPUT,
    Add,
    Affine,
    Concat,
    MatMul,
    Multiply,
    Network,
    Node,
    Pad,
    Pointwise,
    Reshape,
    Rule,
    Select,
    Slice,
    Transpose,
    size,
    walk_back,
)
from citrus_tool.records import select
from citrus_tool.threat import Box


@dataclass(frozen=True, kw_only=True)
class RelaxedNetwork:
    """A network over a batch of n boxes, its nonlinear nodes relaxed: what the backward rules read besides the rows.

    With no mapping but the network it serves functionals that meet affine layers alone.

    Attributes:
        boxes: of every node and of INPUT, outward; the backward rules need none.
        relaxations: of every nonlinear node.
        errors: by node, (n,) the rounding error of one backward step per unit of the rows' norm (`backward_error`); a
            node without an entry is passed as if arithmetic were exact, for optimisers, which certify nothing.
        file_errors: by node, and at INPUT, (n, *shape) how far a run of the file may lie from the layer's exact value
            (bounds/float32.py); none where it is exact.
        region: the box that planes are about: of x + u before it is rounded; None: that of INPUT.
    """

    network: Network
    boxes: Mapping[str, Box] = field(default_factory=dict)
    relaxations: Mapping[str, Relaxation] = field(default_factory=dict)
    errors: Mapping[str, Tensor] = field(default_factory=dict)
    file_errors: Mapping[str, Tensor] = field(default_factory=dict)
    region: Box | None = None

    @property
    def box(self) -> Box:
        """Of the points x + u."""
        return self.boxes[INPUT] if self.region is None else self.region

    def select(self, part: slice) -> RelaxedNetwork:
        """The same for a range of the batch."""
        return replace(
            self,
            boxes={name: select(box, part) for name, box in self.boxes.items()},
            relaxations={name: select(relaxation, part) for name, relaxation in self.relaxations.items()},
            errors={name: error[part] for name, error in self.errors.items()},
            file_errors={name: error[part] for name, error in self.file_errors.items()},
            region=None if self.region is None else select(self.region, part),
        )

    def settle(self, node: Node, rows: Rows) -> Tensor:
        """The rows' offset lowered by the rounding error of passing `node`, and by what a run of the file differs."""
        error = self.errors.get(node.name)
        settled = rows.offset if error is None else rows.offset - rows.norm * error[rows.sample]
        return self.paid(node.name, replace(rows, offset=settled))

    def paid(self, name: str, rows: Rows) -> Tensor:
        """The rows' offset lowered by |coefficient| times what a run of the file differs by at node `name`.

        Rows on windows pay for the largest error of a channel's map: gathering windows of errors costs far more time
        than it gains.
        """
        error = self.file_errors.get(name)
        if error is None:
            return rows.offset
        if rows.window is None:
            return rows.offset - inner(rows.coefficient.abs(), rows.at(error))
        largest = error.flatten(2).amax(2)
        return rows.offset - inner(rows.coefficient.abs().sum((2, 3)), largest[rows.sample])

    def paid_at(self, name: str, sample: Tensor, entry: Tensor, offset: Tensor) -> Tensor:
        """`offset` (R,) of rows +-z[entry_r] at node `name`, lowered like that."""
        error = self.file_errors.get(name)
        return offset if error is None else offset - error.flatten(1)[sample if len(error) > 1 else 0, entry]

    def shape(self, node: Node) -> Shape:
        """Per-sample shape of a node's first input."""
        return self.network.shape_of(node.inputs[0])


def backward_error(network: Network, node: Node, *inputs: Box) -> Tensor:
    """Per sample (n,): the rounding error of carrying rows of unit norm back through `node` (docs/soundness.md)."""
    entries = size(node.shape) + sum(size(network.shape_of(name)) for name in node.inputs)
    return layer_error(node.layer, *inputs, extra_terms=entries + PER_NODE * len(network.nodes))


def _linear(relaxed: RelaxedNetwork, layer: nn.Linear, node: Node, rows: Rows) -> tuple[Rows]:
    rows = rows.dense()
    offset = relaxed.settle(node, rows)
    if layer.bias is not None:
        offset = offset + (rows.coefficient @ layer.bias).reshape(len(offset), -1).sum(1)
    coefficient = rows.coefficient @ layer.weight
    return (Rows.of(sample=rows.sample, shape=relaxed.shape(node), coefficient=coefficient, offset=offset),)


def conv_padding(layer: nn.Conv2d, node: Node) -> Pair:
    """Zero padding (y, x) of a convolution; raises UnsupportedNetworkError where it is not the same on both sides."""
    if not isinstance(layer.padding, str):
        return (layer.padding[0], layer.padding[1])
    y, x = (
        d * (k - 1) if layer.padding == "same" else 0 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)
    )
    if y % 2 or x % 2:
        raise UnsupportedNetworkError(f"node {node.name!r}: uneven 'same' padding has no bound rule; add a Pad layer.")
    return (y // 2, x // 2)


def _conv(relaxed: RelaxedNetwork, layer: nn.Conv2d, node: Node, rows: Rows) -> tuple[Rows]:
    shape, pad, window = relaxed.shape(node), conv_padding(layer, node), rows.window
    offset = relaxed.settle(node, rows)
    if layer.bias is not None:
        offset = offset + rows.coefficient.sum((2, 3)) @ layer.bias
    corner, seen = (pad, (shape[1], shape[2])) if window is None else ((0, 0), _reach(layer, rows.extent))
    coefficient = conv_transpose(
        rows.coefficient,
        layer.weight,
        stride=(layer.stride[0], layer.stride[1]),
        dilation=(layer.dilation[0], layer.dilation[1]),
        groups=layer.groups,
        corner=corner,
        size=seen,
    )
    if window is not None:
        coefficient, window = _fit(_behind(window, layer, pad), coefficient, shape)
    return (Rows.of(sample=rows.sample, shape=shape, coefficient=coefficient, offset=offset, window=window),)


def _behind(window: Window, layer: nn.Conv2d, pad: Pair) -> Window:
    """Where windows of a convolution's output lie in its input."""
    (y, x), (down, right) = layer.stride, window.offset
    return replace(
        window, stride=(window.stride[0] * y, window.stride[1] * x), offset=(down * y - pad[0], right * x - pad[1])
    )


def _reach(layer: nn.Conv2d, extent: Pair) -> Pair:
    """Extent of the input that a convolution's outputs of `extent` meet, padding counted."""
    y, x = (
        (e - 1) * s + d * (k - 1) + 1
        for e, s, d, k in zip(extent, layer.stride, layer.dilation, layer.kernel_size, strict=True)
    )
    return (y, x)


def _fit(window: Window, coefficient: Tensor, shape: Shape) -> tuple[Tensor, Window | None]:
    """Zeros outside the map; a dense map once windows are no smaller than it."""
    extent = (coefficient.shape[2], coefficient.shape[3])
    if extent[0] * extent[1] >= shape[1] * shape[2]:
        return window.scatter(coefficient, shape), None
    if window.inside(extent, shape):
        return coefficient, window
    inside = window.gather(coefficient.new_ones(1, 1, *shape[1:]), torch.zeros_like(window.position[:, 0]), extent)
    return coefficient * inside, window


def _scaled(relaxed: RelaxedNetwork, node: Node, rows: Rows, scale: Tensor, shift: Tensor) -> tuple[Rows]:
    """Back through z -> scale * z + shift, both broadcastable to the node's shape."""
    offset = relaxed.settle(node, rows)
    if len(rows.shape) == 3 and _one_a_channel(scale, shift):
        # outside the map coefficients are 0
        scale, shift = (v.expand(rows.shape[0], 1, 1) for v in (scale, shift))
        offset = offset + rows.coefficient.sum((2, 3)) @ shift.flatten()
        coefficient = rows.coefficient * scale
    elif rows.window is None:
        scale, shift = scale.expand(rows.shape), shift.expand(rows.shape)
        offset = offset + rows.coefficient.flatten(1) @ shift.flatten()
        coefficient = rows.coefficient * scale
    else:
        first = torch.zeros_like(rows.sample)
        both = torch.stack([scale.expand(rows.shape), shift.expand(rows.shape)]).flatten(0, 1)[None]
        here = rows.window.gather(both, first, rows.extent)
        offset = offset + inner(rows.coefficient, here[:, rows.shape[0] :])
        coefficient = rows.coefficient * here[:, : rows.shape[0]]
    return (replace(rows, coefficient=coefficient, offset=offset, norm=rows.norm * scale.detach().abs().amax()),)


def _one_a_channel(*values: Tensor) -> bool:
    """Whether none of `values`, broadcastable to (C, H, W), varies over a channel's map."""
    return all(max((1, 1, *value.shape)[-2:]) == 1 for value in values)


def _affine(relaxed: RelaxedNetwork, layer: Affine, node: Node, rows: Rows) -> tuple[Rows]:
    return _scaled(relaxed, node, rows, layer.scale, layer.shift)


def _batch_norm(relaxed: RelaxedNetwork, layer: nn.BatchNorm1d | nn.BatchNorm2d, node: Node, rows: Rows) -> tuple[Rows]:
    scale, shift = batch_norm_affine(layer, len(rows.shape))
    return _scaled(relaxed, node, rows, scale, shift)


def _activation(relaxed: RelaxedNetwork, layer: nn.Module, node: Node, rows: Rows) -> tuple[Rows]:
    """Positive coefficients take the lower line, negative ones the upper."""
    lines = relaxed.relaxations[node.name]
    assert isinstance(lines, Lines)
    negative = rows.coefficient.clamp(max=0)
    offset = relaxed.settle(node, rows) + inner(negative, rows.at(lines.upper_offset))
    if lines.lower_offset is not None:
        offset = offset + inner(rows.coefficient - negative, rows.at(lines.lower_offset))
    coefficient = torch.addcmul(
        rows.coefficient * rows.at(lines.lower_slope), negative, rows.at(lines.upper_slope - lines.lower_slope)
    )
    return (replace(rows, coefficient=coefficient, offset=offset),)  # slopes lie in [0, 1]: the norm cannot grow


def _pointwise(relaxed: RelaxedNetwork, layer: Pointwise, node: Node, rows: Rows) -> tuple[Rows]:
    (bent,) = _activation(relaxed, layer, node, rows)  # slopes of any size: the norm is taken anew
    return (Rows.of(**{name: getattr(bent, name) for name in ("sample", "shape", "coefficient", "offset", "window")}),)


def _multiply(relaxed: RelaxedNetwork, layer: Multiply, node: Node, rows: Rows) -> tuple[Rows, Rows]:
    planes = relaxed.relaxations[node.name]
    assert isinstance(planes, ProductRelaxation)
    left, right = (rows.coefficient * rows.at(factor) for factor in (planes.right, planes.left))
    return _two_sided(relaxed, node, rows, left, right)


def _matmul(relaxed: RelaxedNetwork, layer: MatMul, node: Node, rows: Rows) -> tuple[Rows, Rows]:
    planes, rows = relaxed.relaxations[node.name], rows.dense()
    assert isinstance(planes, ProductRelaxation)
    left = rows.coefficient @ rows.at(planes.right).transpose(-1, -2)
    right = rows.at(planes.left).transpose(-1, -2) @ rows.coefficient
    return _two_sided(relaxed, node, rows, left, right)


def _two_sided(relaxed: RelaxedNetwork, node: Node, rows: Rows, left: Tensor, right: Tensor) -> tuple[Rows, Rows]:
    """Rows at both inputs of a product, with these coefficients; the first ones take the offset."""
    planes = relaxed.relaxations[node.name]
    assert isinstance(planes, ProductRelaxation)
    offset = relaxed.settle(node, rows) - rows.dot(planes.constant)
    offset = offset - inner(rows.coefficient.abs(), rows.at(planes.spread))
    shapes = [relaxed.network.shape_of(name) for name in node.inputs]
    first, second = (
        Rows.of(sample=rows.sample, shape=shape, coefficient=part, offset=own, window=rows.window)
        for shape, part, own in zip(shapes, (left, right), (offset, torch.zeros_like(offset)), strict=True)
    )
    return first, second


def _max_pool(relaxed: RelaxedNetwork, layer: nn.MaxPool2d, node: Node, rows: Rows) -> tuple[Rows]:
    """Positive coefficients go to the entry that is chosen, negative ones to the plane above."""
    found, shape, pool = relaxed.relaxations[node.name], relaxed.shape(node), Pool.of(layer)
    assert isinstance(found, MaxPoolRelaxation)
    negative = rows.coefficient.clamp(max=0)
    planes = rows.at(found.planes.flatten(1, 2)).reshape(-1, shape[0], 2 + pool.entries, *rows.extent)
    offset = relaxed.settle(node, rows) + inner(negative, planes[:, :, 1])
    chosen = planes[:, :, :1] == torch.arange(pool.entries, device=planes.device).reshape(-1, 1, 1)
    positive = torch.where(chosen, (rows.coefficient - negative)[:, :, None], 0.0)
    entries = torch.addcmul(positive, negative[:, :, None], planes[:, :, 2:])
    if rows.window is None:
        coefficient, window = pool.on_map(entries, (shape[1], shape[2])), None
    else:
        (y, x), (down, right), (top, left) = pool.stride, rows.window.offset, pool.padding
        stride, corner = (rows.window.stride[0] * y, rows.window.stride[1] * x), (down * y - top, right * x - left)
        moved = replace(rows.window, stride=stride, offset=corner)
        coefficient, window = _fit(moved, pool.folded(entries), shape)
    return (Rows.of(sample=rows.sample, shape=shape, coefficient=coefficient, offset=offset, window=window),)


def _avg_pool(relaxed: RelaxedNetwork, layer: nn.AvgPool2d, node: Node, rows: Rows) -> tuple[Rows]:
    rows, shape = rows.dense(), relaxed.shape(node)
    transpose = torch.func.vjp(layer, rows.coefficient.new_zeros(len(rows.offset), *shape))[1]
    coefficient = transpose(rows.coefficient)[0]
    return (Rows.of(sample=rows.sample, shape=shape, coefficient=coefficient, offset=relaxed.settle(node, rows)),)


def _add(relaxed: RelaxedNetwork, layer: Add, node: Node, rows: Rows) -> tuple[Rows, Rows]:
    settled = replace(rows, offset=relaxed.settle(node, rows))
    return settled, replace(settled, offset=torch.zeros_like(rows.offset))


def _concat(relaxed: RelaxedNetwork, layer: Concat, node: Node, rows: Rows) -> tuple[Rows, ...]:
    rows = rows.dense()
    shapes = [relaxed.network.shape_of(name) for name in node.inputs]
    parts = torch.split(rows.coefficient, [shape[layer.axis] for shape in shapes], dim=layer.axis + 1)
    first, rest = relaxed.settle(node, rows), torch.zeros_like(rows.offset)
    return tuple(
        replace(rows, coefficient=part, shape=shape, offset=rest if i else first)
        for i, (part, shape) in enumerate(zip(parts, shapes, strict=True))
    )


def _slice(relaxed: RelaxedNetwork, layer: Slice, node: Node, rows: Rows) -> tuple[Rows]:
    rows, shape = rows.dense(), relaxed.shape(node)
    coefficient = rows.coefficient.new_zeros(len(rows.offset), *shape)
    index = torch.arange(layer.start, layer.stop, layer.step, device=coefficient.device)
    coefficient = coefficient.index_add(layer.axis + 1, index, rows.coefficient)
    return (replace(rows, coefficient=coefficient, offset=relaxed.settle(node, rows), shape=shape),)


def _select(relaxed: RelaxedNetwork, layer: Select, node: Node, rows: Rows) -> tuple[Rows]:
    rows, shape = rows.dense(), relaxed.shape(node)
    index = layer.index.flatten()
    taken = index >= 0
    coefficient = rows.coefficient.new_zeros(len(rows.offset), size(shape))
    coefficient = coefficient.index_add(1, index[taken], rows.coefficient.flatten(1)[:, taken])
    coefficient = coefficient.reshape(-1, *shape)
    return (replace(rows, coefficient=coefficient, offset=relaxed.settle(node, rows), shape=shape),)


def _pad(relaxed: RelaxedNetwork, layer: Pad, node: Node, rows: Rows) -> tuple[Rows]:
    rows, shape = rows.dense(), relaxed.shape(node)
    offset = relaxed.settle(node, rows)
    if layer.value != 0.0:
        border = functional.pad(rows.coefficient.new_zeros(shape), layer.pads, value=layer.value)
        offset = offset + rows.coefficient.flatten(1) @ border.flatten()
    coefficient = functional.pad(rows.coefficient, [-p for p in layer.pads])
    return (replace(rows, coefficient=coefficient, offset=offset, shape=shape),)


def _reshape(relaxed: RelaxedNetwork, layer: Reshape, node: Node, rows: Rows) -> tuple[Rows]:
    rows, shape = rows.dense(), relaxed.shape(node)
    coefficient = rows.coefficient.reshape(-1, *shape)
    return (replace(rows, coefficient=coefficient, offset=relaxed.settle(node, rows), shape=shape),)


def _transpose(relaxed: RelaxedNetwork, layer: Transpose, node: Node, rows: Rows) -> tuple[Rows]:
    rows, shape = rows.dense(), relaxed.shape(node)
    back = [layer.axes.index(axis) + 1 for axis in range(len(layer.axes))]
    coefficient = rows.coefficient.permute(0, *back)
    return (replace(rows, coefficient=coefficient, offset=relaxed.settle(node, rows), shape=shape),)


BACKWARD: Mapping[type[nn.Module], Rule] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    Affine: _affine,
    nn.ReLU: _activation,
    nn.LeakyReLU: _activation,
    nn.Sigmoid: _activation,
    nn.Tanh: _activation,
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: _avg_pool,
    Add: _add,
    Concat: _concat,
    Slice: _slice,
    Select: _select,
    Pointwise: _pointwise,
    Multiply: _multiply,
    MatMul: _matmul,
    Pad: _pad,
    Reshape: _reshape,
    Transpose: _transpose,
}
"""(relaxed, layer, node, rows at its output) -> rows at its inputs, for every canonical layer."""


def to_input(
    relaxed: RelaxedNetwork, rows: Rows, *, start: str, rules: Mapping[type[nn.Module], Rule] = BACKWARD
) -> Rows:
    """Carries rows at node `start` back to the input. Differentiable in the relaxations' slopes and offsets."""
    table = {layer: partial(rule, relaxed) for layer, rule in rules.items()}
    return walk_back(relaxed.network, table, rows, start=start, merge=merge)


@dataclass(frozen=True, kw_only=True)
class LinearBounds:
    """target_r >= <coefficient_r, u> + offset_r for |u| <= radius, and the least value `lower` over the box; (R,)."""

    coefficient: Tensor
    offset: Tensor
    lower: Tensor


def concretise(relaxed: RelaxedNetwork, rows: Rows, box: Box) -> LinearBounds:
    """Rows at the input as planes in the perturbation u = z - centre, rounding included.

    The coefficient keeps the rows' window.
    """
    entries = size(relaxed.network.input_shape) + PER_NODE * len(relaxed.network.nodes)
    unit = gamma(entries + OWN, box.centre.dtype) * SAFETY * rows.norm * magnitude(box)[rows.sample]
    offset = relaxed.paid(INPUT, rows) + rows.dot(box.centre) - unit
    reach = inner(rows.coefficient.abs(), rows.at(box.radius))
    return LinearBounds(coefficient=rows.coefficient, offset=offset, lower=offset - reach - unit)


def _place(shape: Shape, entry: Tensor) -> tuple[Tensor, Window]:
    """(channel, window of extent 1) of flat entries of a map."""
    channel, place = entry // (shape[1] * shape[2]), entry % (shape[1] * shape[2])
    position = torch.stack([place // shape[2], place % shape[2]], dim=1)
    return channel, Window(position=position, grid=(shape[1], shape[2]), stride=(1, 1), offset=(0, 0))


def _filters(
    relaxed: RelaxedNetwork, layer: nn.Conv2d, node: Node, sample: Tensor, entry: Tensor, sign: Tensor
) -> Rows:
    """Entries of a convolution's output as rows at its input: the filters themselves."""
    channel, window = _place(node.shape, entry)
    offset = torch.zeros_like(sign) if layer.bias is None else layer.bias[channel] * sign
    coefficient = layer.weight.index_select(0, channel) * sign[:, None, None, None]
    moved = _behind(window, layer, conv_padding(layer, node))
    coefficient, fitted = _fit(moved, coefficient, relaxed.shape(node))
    offset = relaxed.paid_at(node.name, sample, entry, offset)
    return Rows.of(sample=sample, shape=relaxed.shape(node), coefficient=coefficient, offset=offset, window=fitted)


def seed(relaxed: RelaxedNetwork, start: str, sample: Tensor, entry: Tensor, sign: Tensor) -> tuple[str, Rows]:
    """Rows  sign_r * z[entry_r]  of node `start`, and the node where they stand: one step back where that is free.

    Args:
        entry: (R,) flat index into the node's value.
        sign: (R,) +1 or -1.
    """
    network = relaxed.network
    shape = network.shape_of(start)
    node = next((n for n in network.nodes if n.name == start), None)
    if node is not None and isinstance(node.layer, nn.Linear) and len(shape) == 1:
        before, layer = relaxed.shape(node), node.layer
        offset = torch.zeros_like(sign) if layer.bias is None else layer.bias[entry] * sign
        offset = relaxed.paid_at(node.name, sample, entry, offset)
        coefficient = layer.weight.index_select(0, entry) * sign[:, None]
        return node.inputs[0], Rows.of(sample=sample, shape=before, coefficient=coefficient, offset=offset)
    zero = torch.zeros_like(sign)
    if (
        node is not None
        and isinstance(node.layer, nn.Conv2d)
        and node.layer.groups == 1
        and node.layer.dilation == (1, 1)
    ):
        return node.inputs[0], _filters(relaxed, node.layer, node, sample, entry, sign)
    if len(shape) != 3:
        unit = sign.new_zeros(len(sign), size(shape)).scatter(1, entry[:, None], sign[:, None]).reshape(-1, *shape)
        return start, Rows(sample=sample, shape=shape, coefficient=unit, offset=zero, norm=sign.abs())
    channel, window = _place(shape, entry)
    unit = sign.new_zeros(len(sign), shape[0]).scatter(1, channel[:, None], sign[:, None])[:, :, None, None]
    return start, Rows(sample=sample, shape=shape, coefficient=unit, offset=zero, norm=sign.abs(), window=window)


def rival_rows(
    relaxed: RelaxedNetwork, node: Node, sample: Tensor, entry: Tensor, chosen: Tensor, sign: Tensor
) -> tuple[str, Rows]:
    """Rows  sign_r * (z_j - z_r)  at the input of a max pool, and the node where they stand.

    Args:
        entry: (R,) flat index of j into the pool's windows (C, K, h, w).
        chosen: (R,) which of the K entries z_r is.
        sign: (R,) +1 or -1.
    """
    assert isinstance(node.layer, nn.MaxPool2d)
    pool, shape, (channels, height, width) = Pool.of(node.layer), relaxed.shape(node), node.shape
    place, kind = entry % (height * width), entry // (height * width)
    window = Window(
        position=torch.stack([place // width, place % width], dim=1),
        grid=(height, width),
        stride=pool.stride,
        offset=(-pool.padding[0], -pool.padding[1]),
    )
    entries = sign.new_zeros(len(sign), channels * pool.entries)
    entries.scatter_(1, kind[:, None], sign[:, None])
    entries.scatter_add_(1, (kind - kind % pool.entries + chosen)[:, None], -sign[:, None])
    unit = pool.folded(entries.reshape(len(sign), channels, pool.entries, 1, 1))
    unit, fitted = _fit(window, unit, shape)
    zero = torch.zeros_like(sign)
    return node.inputs[0], Rows.of(sample=sample, shape=shape, coefficient=unit, offset=zero, window=fitted)
