"""Rows: linear functionals of one node's value, on a dense map or on windows of one.

Rows are lower bounds: row r says  target_r >= <coefficient_r, z> + offset_r  for the value z of one node, first the
node that the row starts from, at last the input. An upper bound on e is the lower bound on -e. A row lives on a dense
map (coefficient of the node's shape), or on a window of a (C, H, W) map.
Windows after Xu et al. 2020, "Automatic Perturbation Analysis" (auto_LiRPA), appendix on patches.
Differs from the paper in: (1) rows of a batch form one flat list, so every input has as many rows as it needs;
(2) windows are aligned by a stride and an offset that all rows share, merges pad to the union of two windows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

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
        canvas = frame(values, first, last).permute(0, 2, 3, 1).contiguous()
        _, high, wide, channels = canvas.shape
        # a window is `h` runs of w * C numbers of the canvas: one view has all windows, from every pixel on
        pixels = canvas.numel() // max(channels, 1) - (extent[0] - 1) * wide - extent[1] + 1
        views = canvas.as_strided(
            (pixels, extent[0], extent[1] * channels), (channels, wide * channels, 1), canvas.storage_offset()
        )
        y, x = (self.position[:, axis] * self.stride[axis] for axis in (0, 1))
        found = views.index_select(0, (sample * high + y) * wide + x)
        return found.reshape(len(sample), *extent, channels).permute(0, 3, 1, 2)

    def scatter(self, coefficient: Tensor, shape: Shape) -> Tensor:
        """Windows (R, C, h, w) laid into zero maps (R, *shape); what lies outside the map is dropped."""
        rows, channels, *extent = coefficient.shape
        first, last = self.cover((extent[0], extent[1]))
        high, wide = last[0] - first[0], last[1] - first[1]
        y = self.position[:, :1] * self.stride[0] + torch.arange(extent[0], device=coefficient.device)
        x = self.position[:, 1:] * self.stride[1] + torch.arange(extent[1], device=coefficient.device)
        row = torch.arange(rows, device=coefficient.device)[:, None, None]
        index = (row * high + y[:, :, None]) * wide + x[:, None, :]
        canvas = coefficient.new_zeros(rows * high * wide, channels)
        canvas = canvas.index_copy(0, index.flatten(), coefficient.permute(0, 2, 3, 1).reshape(-1, channels))
        corner = (-first[0], -first[1])
        maps = canvas.reshape(rows, high, wide, channels).permute(0, 3, 1, 2)
        return frame(maps, corner, (corner[0] + shape[-2], corner[1] + shape[-1]))


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
        norm = torch.linalg.vector_norm(flat(coefficient.detach()), ord=1, dim=1)
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


def flat(values: Tensor) -> Tensor:
    """values (R, ...) as (R, entries): maps with channels last in memory in that order, without a copy."""
    return (values.permute(0, 2, 3, 1) if channels_last(values) else values).flatten(1)


def channels_last(values: Tensor) -> bool:
    """Whether `values` are maps (R, C, h, w) that lie in memory pixel by pixel."""
    return values.dim() == 4 and values.is_contiguous(memory_format=torch.channels_last)


def inner(left: Tensor, right: Tensor) -> Tensor:
    """Row by row inner products, (R,); `right` may be one row for all."""
    if channels_last(left):
        left, right = left.permute(0, 2, 3, 1), right.permute(0, 2, 3, 1)
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
