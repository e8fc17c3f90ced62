"""Products of searches: parts of the box on which no one perturbation fools all of several inputs.

A search over one input's margin leaves parts of the box open, each with a plane below the margin: a factor of the
products. A u that fools inputs 1..m together lies in a part of each factor, and there the planes' sums with shares
s >= 0,

    min over |u| <= eps  sum_i s_i (L_i u + b_i)  =  sum_i s_i b_i - eps |sum_i s_i L_i|_1,

hold at once (the Farkas step of RACoon, Banerjee et al. 2024, theorem 4.1, on the leaves of branch and bound instead of
on one plane an input). Where this is above 0 the product of the parts is closed; the others are where a joint search
starts (joint_loop.py). A joint search from the whole box would not get there: while the executions are loose one of
them gets all of the share, and neurons of the others are never split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from citrus_tool.bounds.claims import least_sum
from citrus_tool.bounds.duals import Duals
from citrus_tool.bounds.linear import LinearBounds
from citrus_tool.bounds.workspace import LEAST_SHARE
from citrus_tool.certification.parts import Leaf
from citrus_tool.records import select
from citrus_tool.threat import Box

MIXES: Final = 9
"""Shares tried for every product, evenly spaced between 0 and 1."""
BYTES: Final = 2**26
"""Size of a chunk of mixed planes."""


@dataclass(frozen=True, kw_only=True)
class Factor:
    """The open parts (n,) of one execution's search for one rival.

    `duals` as in the search; `planes` below the margin, claimed in float64 with the duals `on_grid`: on part r,
    margin >= <coefficient_r, u> + offset_r. `closed`: the search's closed parts, if they are recorded.
    """

    duals: Duals
    planes: LinearBounds
    closed: tuple[Leaf, ...] = ()

    def __len__(self) -> int:
        return len(self.planes.offset)


@dataclass(frozen=True, kw_only=True)
class Products:
    """Products (n,) of parts of m factors: `part` (n, m) numbers in the factors, `share` (n, m) summing to 1."""

    part: Tensor
    share: Tensor

    def __len__(self) -> int:
        return len(self.part)


@dataclass(frozen=True, kw_only=True)
class Multiplied:
    """All products of some factors: those that are open, and those that are closed, by how many factors it took.

    `closed[i]` are products of the first i + 2 factors.
    """

    open: Products
    closed: tuple[Products, ...]


def multiply(factors: Sequence[Factor], box: Box, *, limit: int) -> Multiplied | None:
    """Closes products of parts by mixing their planes, one factor after the other.

    Args:
        factors: at least one.
        limit: None is returned when more products than this are open at any time.
    """
    first = factors[0]
    count = torch.arange(len(first), device=first.planes.offset.device)
    found = Products(part=count[:, None], share=first.planes.offset.new_ones(len(first), 1))
    slope, offset = first.planes.coefficient.flatten(1), first.planes.offset
    radius = box.radius.flatten()
    closed: list[Products] = []
    for factor in factors[1:]:
        if len(found) * len(factor) > 64 * limit:
            return None
        index, mix = _mixed(slope, offset, factor, radius)
        before, last = index[:, 0], index[:, 1]
        wider = Products(
            part=torch.cat([found.part[before], last[:, None]], dim=1),
            share=torch.cat([found.share[before] * (1 - mix[:, None]), mix[:, None]], dim=1),
        )
        bound = claimed(factors[: wider.part.shape[1]], wider, box)
        shut = bound > 0
        closed.append(select(wider, shut.nonzero().flatten()))
        left = (~shut).nonzero().flatten()
        if len(left) > limit:
            return None
        found = select(wider, left)
        other = factor.planes
        weight = mix[left][:, None]
        slope = slope[before[left]] * (1 - weight) + other.coefficient.flatten(1)[last[left]] * weight
        offset = offset[before[left]] * (1 - weight[:, 0]) + other.offset[last[left]] * weight[:, 0]
    return Multiplied(open=found, closed=tuple(closed))


def claimed(factors: Sequence[Factor], products: Products, box: Box) -> Tensor:
    """(n,) lower bounds of sum_i share_i margin_i on products of parts, in real arithmetic."""
    bounds = []
    width = products.part.shape[1]
    size = max(1, BYTES // (8 * box.radius.numel() * (width + 1)))
    for some in torch.split(torch.arange(len(products), device=products.part.device), size):
        parts = []
        for number, factor in enumerate(factors):
            index, share = products.part[some, number], products.share[some, number]
            shape = (-1, *[1] * (factor.planes.coefficient.dim() - 1))
            # one rounding of each product, which least_sum's margin covers
            parts.append(
                LinearBounds(
                    coefficient=factor.planes.coefficient[index] * share.reshape(shape),
                    offset=factor.planes.offset[index] * share,
                    lower=share,
                )
            )
        bounds.append(least_sum(parts, box))
    return torch.cat(bounds) if bounds else box.radius.new_zeros(0)


def _mixed(slope: Tensor, offset: Tensor, factor: Factor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """All pairs (n, 2) of rows of `slope`, `offset` and parts of a factor, and the best share (n,) of the latter."""
    others, shift = factor.planes.coefficient.flatten(1), factor.planes.offset
    grid = torch.linspace(0, 1, MIXES + 2, dtype=torch.float32, device=slope.device)[1:-1]
    a, c, reach = slope.float(), others.float(), radius.float()
    rows = max(1, BYTES // (4 * len(reach) * max(1, len(c))))
    mixes = []
    for some in torch.split(torch.arange(len(a), device=a.device), rows):
        left, right = (a[some] * reach)[:, None], (c * reach)[None]
        best = torch.full((len(some), len(c)), -torch.inf, device=a.device)
        mix = torch.zeros_like(best)
        for share in grid.tolist():
            value = -torch.lerp(left, right, share).abs().sum(2)
            value += (1 - share) * offset[some].float()[:, None] + share * shift.float()[None]
            better = value > best
            best, mix = torch.where(better, value, best), torch.where(better, share, mix)
        mixes.append(mix)
    mix = torch.cat(mixes) if mixes else a.new_zeros(0, len(c))
    index = torch.cartesian_prod(torch.arange(len(a), device=a.device), torch.arange(len(c), device=a.device)).reshape(
        -1, 2
    )
    return index, mix.flatten().double()


def joined(factors: Sequence[Factor], products: Products) -> Duals:
    """The products' duals over the executions side by side (fold.beside), for a joint ascent."""
    first = 0
    alpha, split, side, beta = [], [], [], []
    total = sum(len(factor.duals.alpha) for factor in factors)
    for number, factor in enumerate(factors):
        neurons = len(factor.duals.alpha)
        duals = factor.duals.columns(products.part[:, number])
        share = products.share[:, number].to(duals.beta.dtype)
        alpha.append(duals.alpha)
        split.append(torch.where(duals.side != 0, duals.split + first, total))
        side.append(duals.side)
        beta.append(duals.beta * share)
        first += neurons
    share = products.share.T.clamp(min=LEAST_SHARE)
    return Duals(
        alpha=torch.cat(alpha),
        split=torch.cat(split),
        side=torch.cat(side),
        beta=torch.cat(beta),
        share=(share / share.sum(0)).to(alpha[0].dtype),
    )


def trimmed(duals: Duals) -> Duals:
    """The same without rows of `split` that no column uses."""
    used = (duals.side != 0).any(1)
    return replace(duals, split=duals.split[used], side=duals.side[used], beta=duals.beta[used])
