"""Max pools over boxes: planes from the differences of a window's entries.

With one entry r of a window as reference and d_j = z_j - z_r for its rivals, pool(z) = z_r + max(0, max_j d_j). Below,
that is z_r; above, z_r plus the sum of the chords of max(0, d_j) over [l_j, u_j], or a constant where that is lower at
the box's centre. Neighbours of a map depend on much the same inputs, so that their differences, bounded as linear
functionals (crown.py), are known far better than from the neighbours' own bounds. Singh et al. 2019 (DeepPoly) take z_r
and the constant alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from citrus_tool.bounds.rounding import unit_roundoff
from citrus_tool.bounds.rows import Pair, frame
from citrus_tool.threat import Box


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The geometry of a max pool, (y, x) each; `padding` is what lies in front."""

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair

    @staticmethod
    def of(layer: nn.MaxPool2d) -> Pool:
        """That of a layer."""
        sizes = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
        kernel, stride, padding, dilation = ((v, v) if isinstance(v, int) else (v[0], v[1]) for v in sizes)
        return Pool(kernel=kernel, stride=stride, padding=padding, dilation=dilation)

    @property
    def entries(self) -> int:
        """K, how many entries a window has, those outside the map counted."""
        return self.kernel[0] * self.kernel[1]

    def reach(self, outputs: Pair) -> Pair:
        """Extent of the input that a map of `outputs` windows covers, padding counted."""
        y, x = (
            (o - 1) * s + d * (k - 1) + 1
            for o, s, d, k in zip(outputs, self.stride, self.dilation, self.kernel, strict=True)
        )
        return (y, x)

    def windows(self, values: Tensor, outputs: Pair, fill: float) -> Tensor:
        """The entries of all windows of maps (n, C, H, W), (n, C, K, *outputs), with `fill` outside the map."""
        down, right = self.reach(outputs)
        top, left = self.padding
        pads = (left, max(0, right - values.shape[3] - left), top, max(0, down - values.shape[2] - top))
        grown = functional.pad(values, pads, value=fill)
        parts = []
        for y in range(self.kernel[0]):
            for x in range(self.kernel[1]):
                first = (y * self.dilation[0], x * self.dilation[1])
                last = (first[0] + (outputs[0] - 1) * self.stride[0], first[1] + (outputs[1] - 1) * self.stride[1])
                parts.append(
                    grown[:, :, first[0] : last[0] + 1 : self.stride[0], first[1] : last[1] + 1 : self.stride[1]]
                )
        return torch.stack(parts, dim=2)

    def folded(self, values: Tensor) -> Tensor:
        """Entries of windows (R, C, K, h, w), added up where they are of the map, padding counted: (R, C, *reach)."""
        rows, channels, _, *outputs = values.shape
        columns = values.reshape(rows, channels * self.entries, -1)
        size = self.reach((outputs[0], outputs[1]))
        return functional.fold(columns, size, self.kernel, self.dilation, 0, self.stride)

    def on_map(self, values: Tensor, size: Pair) -> Tensor:
        """`folded`, on the map (R, C, *size) without its padding."""
        top, left = self.padding
        return frame(self.folded(values), (top, left), (top + size[0], left + size[1]))


@dataclass(frozen=True, kw_only=True)
class MaxPoolRelaxation:
    """window[chosen] <= pool(z) <= <slopes, window> + offset, for the K entries of every window.

    Attributes:
        planes: (n, C, 2 + K, h, w), in one tensor since they are gathered together: chosen, offset and the slopes.
    """

    planes: Tensor

    @property
    def chosen(self) -> Tensor:
        """Which entry is the plane below, (n, C, 1, h, w), whole numbers in [0, K)."""
        return self.planes[:, :, :1]

    @property
    def offset(self) -> Tensor:
        """(n, C, h, w)."""
        return self.planes[:, :, 1]

    @property
    def slopes(self) -> Tensor:
        """(n, C, K, h, w)."""
        return self.planes[:, :, 2:]


def reference(layer: nn.MaxPool2d, box: Box) -> Tensor:
    """The entry of every window, (n, C, 1, h, w) in [0, K), that its rivals are compared with: the largest centre."""
    pool = Pool.of(layer)
    outputs = layer(box.centre[:1, :1]).shape
    centres = pool.windows(box.centre, (outputs[2], outputs[3]), -torch.inf)
    return centres.argmax(2, keepdim=True)


def rivals(layer: nn.MaxPool2d, box: Box, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds (n, C, K, h, w) of each entry minus the `reference`, from the entries' own; 0 for itself, -inf outside."""
    pool, outputs = Pool.of(layer), (chosen.shape[3], chosen.shape[4])
    lower, upper = pool.windows(box.lower, outputs, -torch.inf), pool.windows(box.upper, outputs, -torch.inf)
    here = torch.arange(pool.entries, device=chosen.device).reshape(1, 1, -1, 1, 1) == chosen
    slack = 4 * unit_roundoff(lower.dtype)
    floor, top = lower.gather(2, chosen), upper.gather(2, chosen)
    low, high = lower - top, upper - floor
    low = low - slack * (lower.abs() + top.abs())
    high = torch.where(high == 0, high, high + slack * (upper.abs() + floor.abs()))
    outside = upper == -torch.inf
    low, high = (v.masked_fill(here, 0.0).masked_fill(outside, -torch.inf) for v in (low, high))
    return low, high


def planes_of_pool(layer: nn.MaxPool2d, box: Box, chosen: Tensor, low: Tensor, high: Tensor) -> MaxPoolRelaxation:
    """The relaxation from bounds (n, C, K, h, w) of each entry minus the chosen one's."""
    entries = torch.arange(low.shape[2], device=low.device).reshape(1, 1, -1, 1, 1)
    own = (entries == chosen).to(low.dtype)
    open_ = ~(high <= 0)  # NaN counts as open
    below = torch.where(open_, low.clamp(max=0), 0.0)
    above = torch.where(open_, high, 0.0)
    chord = torch.where(open_, above / torch.where(open_, above - below, 1.0), 0.0)
    guard = 16 * unit_roundoff(low.dtype) * (above - below)
    ceiling: Tensor = layer(box.upper)
    centre = Pool.of(layer).windows(box.centre, (low.shape[3], low.shape[4]), -torch.inf).gather(2, chosen)
    # a chord is u / 2 above the middle of [l, u]
    by_chords = ((centre[:, :, 0] + above.sum(2) / 2) <= ceiling)[:, :, None]
    slopes = torch.where(by_chords, chord + own * (1 - chord.sum(2, keepdim=True)), 0.0)
    offset = torch.where(by_chords, (guard - chord * below).sum(2, keepdim=True), ceiling[:, :, None])
    return MaxPoolRelaxation(planes=torch.cat([chosen.to(low.dtype), offset, slopes], dim=2))


def max_pool_planes(layer: nn.MaxPool2d, box: Box) -> MaxPoolRelaxation:
    """The relaxation from the box over the pool's input alone."""
    chosen = reference(layer, box)
    return planes_of_pool(layer, box, chosen, *rivals(layer, box, chosen))
