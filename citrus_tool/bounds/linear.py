"""Linear functionals carried backward through the graph: the rule table of CROWN.

Rows are lower bounds: row r says  target_r >= <coefficient_r, z> + offset_r  for the value z of one node, first the
node that the row starts from, at last the input. An upper bound on e is the lower bound on -e.
Zhang et al. 2018 (CROWN), section 3.2; windows after Xu et al. 2020, "Automatic Perturbation Analysis" (auto_LiRPA),
appendix on patches.
Differs from the papers in: (1) rows of a batch form one flat list, so every input has as many rows as it needs;
(2) windows are aligned by a stride and an offset that all rows share, merges pad to the union of two windows;
(3) every step lowers `offset` by its own rounding error (docs/soundness.md).

A row lives on a dense map (coefficient of the node's shape), or on a window of a (C, H, W) map.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from citrus_tool.bounds.interval import batch_norm_affine
from citrus_tool.bounds.relaxation import Lines, Relaxation, Selection
from citrus_tool.bounds.rounding import OWN, PER_NODE, SAFETY, gamma, layer_error, magnitude
from citrus_tool.errors import UnsupportedNetworkError
from citrus_tool.network import (
    Add,
    Affine,
    Concat,
    Network,
    Node,
    Pad,
    Reshape,
    Rule,
    Slice,
    Transpose,
    size,
    walk_back,
)
from citrus_tool.threat import Box

Pair = tuple[int, int]
Shape = tuple[int, ...]


def frame(values: Tensor, first: Pair, last: Pair) -> Tensor:
    """values[..., first:last] over the last axes of (..., H, W), with zeros where the range leaves the map."""
    index: list[slice] = []
    pads: list[int] = []
    for axis in (0, 1):
        start = min(max(first[axis], 0), values.shape[axis - 2])
        stop = min(max(last[axis], start), values.shape[axis - 2])
        before = min(max(start - first[axis], 0), last[axis] - first[axis])
        index.append(slice(start, stop))
        pads = [before, last[axis] - first[axis] - before - (stop - start), *pads]
    return functional.pad(values[..., index[0], index[1]], pads)


@dataclass(frozen=True, kw_only=True)
class Window:
    """Where rows' windows lie in a map: row r starts at position[r] * stride + offset (may lie outside the map).

    `position` (R, 2) is an entry of the map that the rows started from, of size `grid`; it is the only part that
    differs between rows.
    """

    position: Tensor
    grid: Pair
    stride: Pair
    offset: Pair

    def cover(self, extent: Pair) -> tuple[Pair, Pair]:
        """(first, past last) coordinate per axis that any window of size `extent` reaches, as (y, x) pairs."""
        first = self.offset
        last = tuple(
            (g - 1) * s + o + e for g, s, o, e in zip(self.grid, self.stride, self.offset, extent, strict=True)
        )
        return first, (last[0], last[1])

    def inside(self, extent: Pair, shape: Shape) -> bool:
        """Whether no window of size `extent` leaves a map of `shape`."""
        first, last = self.cover(extent)
        return min(first) >= 0 and last[0] <= shape[-2] and last[1] <= shape[-1]

    def gather(self, values: Tensor, sample: Tensor, extent: Pair) -> Tensor:
        """values (n, C, H, W) at every row's window: (R, C, *extent), zeros outside the map."""
        first, last = self.cover(extent)
        canvas = frame(values, first, last)
        columns = functional.unfold(canvas, extent, stride=self.stride).transpose(1, 2)
        index = (sample * self.grid[0] + self.position[:, 0]) * self.grid[1] + self.position[:, 1]
        return columns.reshape(-1, columns.shape[2]).index_select(0, index).reshape(-1, values.shape[1], *extent)

    def scatter(self, coefficient: Tensor, shape: Shape) -> Tensor:
        """Windows (R, C, h, w) laid into zero maps (R, *shape); what lies outside the map is dropped."""
        rows, channels, *extent = coefficient.shape
        first, last = self.cover((extent[0], extent[1]))
        high, wide = last[0] - first[0], last[1] - first[1]
        start = self.position * self.position.new_tensor(self.stride)
        y = start[:, 0, None] + torch.arange(extent[0], device=start.device)
        x = start[:, 1, None] + torch.arange(extent[1], device=start.device)
        index = (y[:, :, None] * wide + x[:, None, :]).reshape(rows, 1, -1).expand(-1, channels, -1)
        canvas = coefficient.new_zeros(rows, channels, high * wide).scatter(2, index, coefficient.flatten(2))
        corner = (-first[0], -first[1])
        return frame(canvas.reshape(rows, channels, high, wide), corner, (corner[0] + shape[-2], corner[1] + shape[-1]))


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A flat list of R lower bounds  target_r >= <coefficient_r, z> + offset_r  (module docstring).

    Attributes:
        sample: (R,) index of the input that each row belongs to.
        shape: per-sample shape of the node whose value z is.
        coefficient: (R, *shape), or (R, C, h, w) on `window`, zero outside the map.
        offset: (R,), already lowered by the rounding errors of all steps so far.
        norm: (R,) an upper bound on the l1 norm of each row's coefficient.
        window: None for a dense map.
    """

    sample: Tensor
    shape: Shape
    coefficient: Tensor
    offset: Tensor
    norm: Tensor
    window: Window | None = None

    @staticmethod
    def of(*, sample: Tensor, shape: Shape, coefficient: Tensor, offset: Tensor, window: Window | None = None) -> Rows:
        """Rows whose norm is that of their coefficient."""
        norm = torch.linalg.vector_norm(coefficient.detach().flatten(1), ord=1, dim=1)
        return Rows(sample=sample, shape=shape, coefficient=coefficient, offset=offset, norm=norm, window=window)

    @property
    def extent(self) -> Pair:
        """(h, w) of the coefficients' last two axes."""
        return (self.coefficient.shape[-2], self.coefficient.shape[-1])

    def dense(self) -> Rows:
        """The same rows on the whole map."""
        if self.window is None:
            return self
        return replace(self, coefficient=self.window.scatter(self.coefficient, self.shape), window=None)

    def at(self, values: Tensor) -> Tensor:
        """Per-sample values (n, *shape) where the rows' coefficients are: broadcastable to the coefficient's shape."""
        if self.window is None:
            return values if len(values) == 1 else values.index_select(0, self.sample)
        return self.window.gather(values, self.sample, self.extent)

    def dot(self, values: Tensor) -> Tensor:
        """<coefficient_r, values of its sample>, (R,)."""
        return inner(self.coefficient, self.at(values))


def inner(left: Tensor, right: Tensor) -> Tensor:
    """Row by row inner products, (R,); `right` may be one row for all."""
    if len(right) == 1:
        return left.flatten(1) @ right.flatten()
    return torch.einsum("rd,rd->r", left.flatten(1), right.flatten(1))


def merge(left: Rows, right: Rows) -> Rows:
    """The sum of two functionals of one node; of two windows of one stride, on their union."""
    joined = replace(left, offset=left.offset + right.offset, norm=left.norm + right.norm)
    if left.window is None or right.window is None or left.window.stride != right.window.stride:
        return replace(joined, coefficient=left.dense().coefficient + right.dense().coefficient, window=None)
    ends = [
        tuple(o + e for o, e in zip(window.offset, rows.extent, strict=True))
        for rows, window in ((left, left.window), (right, right.window))
    ]
    top, side = (min(a, b) for a, b in zip(left.window.offset, right.window.offset, strict=True))
    bottom, far = (max(a, b) for a, b in zip(*ends, strict=True))
    parts = [
        functional.pad(rows.coefficient, (o[1] - side, far - end[1], o[0] - top, bottom - end[0]))
        for rows, o, end in ((left, left.window.offset, ends[0]), (right, right.window.offset, ends[1]))
    ]
    return replace(joined, coefficient=parts[0] + parts[1], window=replace(left.window, offset=(top, side)))


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What the backward rules read besides the rows: shapes, the relaxation of each nonlinear node, rounding units.

    `errors[name]` (n,) is the rounding error of one backward step at a node per unit of the rows' norm
    (`backward_error`); a node without an entry is passed as if arithmetic were exact, for optimisers, which certify
    nothing.
    """

    network: Network
    relaxations: Mapping[str, Relaxation]
    errors: Mapping[str, Tensor]

    def select(self, part: slice) -> Reading:
        """The same for a range of the batch."""
        return replace(
            self,
            relaxations={name: relaxation.select(part) for name, relaxation in self.relaxations.items()},
            errors={name: error[part] for name, error in self.errors.items()},
        )

    def settle(self, node: Node, rows: Rows) -> Tensor:
        """The rows' offset lowered by the rounding error of passing `node`."""
        error = self.errors.get(node.name)
        return rows.offset if error is None else rows.offset - rows.norm * error[rows.sample]

    def shape(self, node: Node) -> Shape:
        """Per-sample shape of a node's first input."""
        return self.network.shape_of(node.inputs[0])


def backward_error(network: Network, node: Node, *inputs: Box) -> Tensor:
    """Per sample (n,): the rounding error of carrying rows of unit norm back through `node` (docs/soundness.md)."""
    entries = size(node.shape) + sum(size(network.shape_of(name)) for name in node.inputs)
    return layer_error(node.layer, *inputs, extra_terms=entries + PER_NODE * len(network.nodes))


def _linear(reading: Reading, layer: nn.Linear, node: Node, rows: Rows) -> tuple[Rows]:
    rows = rows.dense()
    offset = reading.settle(node, rows)
    if layer.bias is not None:
        offset = offset + (rows.coefficient @ layer.bias).reshape(len(offset), -1).sum(1)
    coefficient = rows.coefficient @ layer.weight
    return (Rows.of(sample=rows.sample, shape=reading.shape(node), coefficient=coefficient, offset=offset),)


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


def _conv(reading: Reading, layer: nn.Conv2d, node: Node, rows: Rows) -> tuple[Rows]:
    shape, pad, window = reading.shape(node), conv_padding(layer, node), rows.window
    offset = reading.settle(node, rows)
    if layer.bias is not None:
        offset = offset + rows.coefficient.sum((2, 3)) @ layer.bias
    crop, grow = ((0, 0), (0, 0)) if window is not None else (pad, _output_padding(layer, pad, rows.extent, shape))
    coefficient = functional.conv_transpose2d(
        rows.coefficient, layer.weight, None, layer.stride, crop, grow, layer.groups, layer.dilation
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


def _output_padding(layer: nn.Conv2d, pad: Pair, extent: Pair, shape: Shape) -> Pair:
    """Rows and columns at the end of the input map that no window of the convolution reaches."""
    y, x = (
        wide - ((e - 1) * s - 2 * p + d * (k - 1) + 1)
        for wide, e, s, p, d, k in zip(
            shape[1:], extent, layer.stride, pad, layer.dilation, layer.kernel_size, strict=True
        )
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


def _scaled(reading: Reading, node: Node, rows: Rows, scale: Tensor, shift: Tensor) -> tuple[Rows]:
    """Back through z -> scale * z + shift, both broadcastable to the node's shape."""
    offset = reading.settle(node, rows)
    if rows.window is None:
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


def _affine(reading: Reading, layer: Affine, node: Node, rows: Rows) -> tuple[Rows]:
    return _scaled(reading, node, rows, layer.scale, layer.shift)


def _batch_norm(reading: Reading, layer: nn.BatchNorm1d | nn.BatchNorm2d, node: Node, rows: Rows) -> tuple[Rows]:
    scale, shift = batch_norm_affine(layer, len(rows.shape))
    return _scaled(reading, node, rows, scale, shift)


def _activation(reading: Reading, layer: nn.Module, node: Node, rows: Rows) -> tuple[Rows]:
    """Positive coefficients take the lower line, negative ones the upper."""
    lines = reading.relaxations[node.name]
    assert isinstance(lines, Lines)
    negative = rows.coefficient.clamp(max=0)
    offset = reading.settle(node, rows) + inner(negative, rows.at(lines.upper_offset))
    if lines.lower_offset is not None:
        offset = offset + inner(rows.coefficient - negative, rows.at(lines.lower_offset))
    coefficient = torch.addcmul(
        rows.coefficient * rows.at(lines.lower_slope), negative, rows.at(lines.upper_slope - lines.lower_slope)
    )
    return (replace(rows, coefficient=coefficient, offset=offset),)  # slopes lie in [0, 1]: the norm cannot grow


def _max_pool(reading: Reading, layer: nn.MaxPool2d, node: Node, rows: Rows) -> tuple[Rows]:
    """Positive coefficients go to the selected entry; so do negative ones where exact, the others meet the ceiling."""
    chosen = reading.relaxations[node.name]
    assert isinstance(chosen, Selection)
    rows = rows.dense()
    exact, shape = rows.at(chosen.exact), reading.shape(node)
    stays = torch.where((rows.coefficient > 0) | exact, rows.coefficient, 0.0)
    offset = reading.settle(node, rows) + inner(rows.coefficient - stays, rows.at(chosen.ceiling))
    flat = stays.new_zeros(len(stays), shape[0], shape[1] * shape[2])
    index = rows.at(chosen.index).expand_as(stays)
    flat = flat.scatter_add(2, index.flatten(2), stays.flatten(2))
    return (replace(rows, coefficient=flat.reshape(-1, *shape), offset=offset, shape=shape),)


def _avg_pool(reading: Reading, layer: nn.AvgPool2d, node: Node, rows: Rows) -> tuple[Rows]:
    rows, shape = rows.dense(), reading.shape(node)
    transpose = torch.func.vjp(layer, rows.coefficient.new_zeros(len(rows.offset), *shape))[1]
    coefficient = transpose(rows.coefficient)[0]
    return (Rows.of(sample=rows.sample, shape=shape, coefficient=coefficient, offset=reading.settle(node, rows)),)


def _add(reading: Reading, layer: Add, node: Node, rows: Rows) -> tuple[Rows, Rows]:
    settled = replace(rows, offset=reading.settle(node, rows))
    return settled, replace(settled, offset=torch.zeros_like(rows.offset))


def _concat(reading: Reading, layer: Concat, node: Node, rows: Rows) -> tuple[Rows, ...]:
    rows = rows.dense()
    shapes = [reading.network.shape_of(name) for name in node.inputs]
    parts = torch.split(rows.coefficient, [shape[layer.axis] for shape in shapes], dim=layer.axis + 1)
    first, rest = reading.settle(node, rows), torch.zeros_like(rows.offset)
    return tuple(
        replace(rows, coefficient=part, shape=shape, offset=rest if i else first)
        for i, (part, shape) in enumerate(zip(parts, shapes, strict=True))
    )


def _slice(reading: Reading, layer: Slice, node: Node, rows: Rows) -> tuple[Rows]:
    rows, shape = rows.dense(), reading.shape(node)
    coefficient = rows.coefficient.new_zeros(len(rows.offset), *shape)
    index = torch.arange(layer.start, layer.stop, layer.step, device=coefficient.device)
    coefficient = coefficient.index_add(layer.axis + 1, index, rows.coefficient)
    return (replace(rows, coefficient=coefficient, offset=reading.settle(node, rows), shape=shape),)


def _pad(reading: Reading, layer: Pad, node: Node, rows: Rows) -> tuple[Rows]:
    rows, shape = rows.dense(), reading.shape(node)
    offset = reading.settle(node, rows)
    if layer.value != 0.0:
        border = functional.pad(rows.coefficient.new_zeros(shape), layer.pads, value=layer.value)
        offset = offset + rows.coefficient.flatten(1) @ border.flatten()
    coefficient = functional.pad(rows.coefficient, [-p for p in layer.pads])
    return (replace(rows, coefficient=coefficient, offset=offset, shape=shape),)


def _reshape(reading: Reading, layer: Reshape, node: Node, rows: Rows) -> tuple[Rows]:
    rows, shape = rows.dense(), reading.shape(node)
    coefficient = rows.coefficient.reshape(-1, *shape)
    return (replace(rows, coefficient=coefficient, offset=reading.settle(node, rows), shape=shape),)


def _transpose(reading: Reading, layer: Transpose, node: Node, rows: Rows) -> tuple[Rows]:
    rows, shape = rows.dense(), reading.shape(node)
    back = [layer.axes.index(axis) + 1 for axis in range(len(layer.axes))]
    coefficient = rows.coefficient.permute(0, *back)
    return (replace(rows, coefficient=coefficient, offset=reading.settle(node, rows), shape=shape),)


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
    Pad: _pad,
    Reshape: _reshape,
    Transpose: _transpose,
}
"""(reading, layer, node, rows at its output) -> rows at its inputs, for every canonical layer."""


def to_input(reading: Reading, rows: Rows, *, start: str, rules: Mapping[type[nn.Module], Rule] = BACKWARD) -> Rows:
    """Carries rows at node `start` back to the input. Differentiable in the relaxations' slopes and offsets."""
    table = {layer: partial(rule, reading) for layer, rule in rules.items()}
    return walk_back(reading.network, table, rows, start=start, merge=merge)


@dataclass(frozen=True, kw_only=True)
class Planes:
    """target_r >= <coefficient_r, u> + offset_r for |u| <= radius, and its least value `lower` over the box; (R,)."""

    coefficient: Tensor
    offset: Tensor
    lower: Tensor


def concretise(reading: Reading, rows: Rows, box: Box) -> Planes:
    """Rows at the input as planes in the perturbation u = z - centre, rounding included.

    The coefficient keeps the rows' window.
    """
    entries = size(reading.network.input_shape) + PER_NODE * len(reading.network.nodes)
    unit = gamma(entries + OWN, box.centre.dtype) * SAFETY * rows.norm * magnitude(box)[rows.sample]
    offset = rows.offset + rows.dot(box.centre) - unit
    reach = inner(rows.coefficient.abs(), rows.at(box.radius))
    return Planes(coefficient=rows.coefficient, offset=offset, lower=offset - reach - unit)


def _place(shape: Shape, entry: Tensor) -> tuple[Tensor, Window]:
    """(channel, window of extent 1) of flat entries of a map."""
    channel, place = entry // (shape[1] * shape[2]), entry % (shape[1] * shape[2])
    position = torch.stack([place // shape[2], place % shape[2]], dim=1)
    return channel, Window(position=position, grid=(shape[1], shape[2]), stride=(1, 1), offset=(0, 0))


def _filters(reading: Reading, layer: nn.Conv2d, node: Node, sample: Tensor, entry: Tensor, sign: Tensor) -> Rows:
    """Entries of a convolution's output as rows at its input: the filters themselves."""
    channel, window = _place(node.shape, entry)
    offset = torch.zeros_like(sign) if layer.bias is None else layer.bias[channel] * sign
    coefficient = layer.weight.index_select(0, channel) * sign[:, None, None, None]
    moved = _behind(window, layer, conv_padding(layer, node))
    coefficient, fitted = _fit(moved, coefficient, reading.shape(node))
    return Rows.of(sample=sample, shape=reading.shape(node), coefficient=coefficient, offset=offset, window=fitted)


def seed(reading: Reading, start: str, sample: Tensor, entry: Tensor, sign: Tensor) -> tuple[str, Rows]:
    """Rows  sign_r * z[entry_r]  of node `start`, and the node where they stand: one step back where that is free.

    Args:
        entry: (R,) flat index into the node's value.
        sign: (R,) +1 or -1.
    """
    network = reading.network
    shape = network.shape_of(start)
    node = next((n for n in network.nodes if n.name == start), None)
    if node is not None and isinstance(node.layer, nn.Linear) and len(shape) == 1:
        before, layer = reading.shape(node), node.layer
        offset = torch.zeros_like(sign) if layer.bias is None else layer.bias[entry] * sign
        coefficient = layer.weight.index_select(0, entry) * sign[:, None]
        return node.inputs[0], Rows.of(sample=sample, shape=before, coefficient=coefficient, offset=offset)
    zero = torch.zeros_like(sign)
    if (
        node is not None
        and isinstance(node.layer, nn.Conv2d)
        and node.layer.groups == 1
        and node.layer.dilation == (1, 1)
    ):
        return node.inputs[0], _filters(reading, node.layer, node, sample, entry, sign)
    if len(shape) != 3:
        unit = sign.new_zeros(len(sign), size(shape)).scatter(1, entry[:, None], sign[:, None]).reshape(-1, *shape)
        return start, Rows(sample=sample, shape=shape, coefficient=unit, offset=zero, norm=sign.abs())
    channel, window = _place(shape, entry)
    unit = sign.new_zeros(len(sign), shape[0]).scatter(1, channel[:, None], sign[:, None])[:, :, None, None]
    return start, Rows(sample=sample, shape=shape, coefficient=unit, offset=zero, norm=sign.abs(), window=window)
