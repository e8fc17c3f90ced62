"""Claims: bounds that hold in real arithmetic, whatever slopes and multipliers they are made with.

A claim is one backward pass of bounds/linear.py in float64 with outward errors, in which each row takes the lines and
multipliers of its own column (Zhang et al. 2018, theorem 3.2; Wang et al. 2021, theorem 3.1; docs/soundness.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from citrus_tool.bounds.duals import Duals
from citrus_tool.bounds.fold import FOLDABLE, Fold, InputPlanes, Settled, floor_of
from citrus_tool.bounds.linear import BACKWARD, LinearBounds, RelaxedNetwork, concretise, to_input
from citrus_tool.bounds.relaxation import Lines
from citrus_tool.bounds.rounding import OWN, SAFETY, gamma
from citrus_tool.bounds.rows import Rows
from citrus_tool.network import Node, Rule
from citrus_tool.threat import Box

TUNED_ROWS = 64
"""Rows (functionals) of one claimed backward pass: few enough that their coefficients stay in cache."""


def row_slices(count: int, step: int) -> Iterator[slice]:
    """Ranges of at most `step` that together are `count` rows."""
    return (slice(first, min(first + step, count)) for first in range(0, count, step))


@dataclass(frozen=True, kw_only=True)
class _TunedLines:
    """One node's lines per row: decided neurons by `slope` and `spread` (1, *shape), open ones by columns (R, U_l)."""

    slope: Tensor
    spread: Tensor
    entry: Tensor
    lower_slope: Tensor
    upper_slope: Tensor
    upper_offset: Tensor
    force: Tensor
    input_planes: tuple[InputPlanes, Tensor] | None  # and (R, U_l) 1 where its plane stands above the neuron
    apart: Tensor | None  # (C,) neurons whose outputs less their lines are left to the caller


@dataclass(frozen=True, kw_only=True)
class Apart:
    """What planes leave out: the sum over C neurons of weight h - slope z; (R, C) each."""

    weight: Tensor
    slope: Tensor


def tuned_planes(relaxed: RelaxedNetwork, system: Fold, start: str, rows: Rows, duals: Duals) -> LinearBounds:
    """Claimed bounds (float64, outward) of rows of one input with the slopes and multipliers of each row's column.

    On the part of the box where the signs in `duals` hold, target_r >= <coefficient_r, u> + offset_r >= lower_r in real
    arithmetic, whatever the duals are: slopes are clamped into [floor, 1] and multipliers to >= 0. Columns without
    splits hold on the whole box. A multiplier adds a coefficient to the row, so it also counts in the norm by which
    rounding errors are scaled (docs/soundness.md).

    Args:
        relaxed: of one input (batch of 1), in float64.
        system: the fold that `duals` refer to, of these boxes; stages that it lacks keep CROWN's lines.
        start: the node where `rows` (R, dense or windows, all of sample 0) stand.
    """
    return planes_apart(relaxed, system, start, rows, duals, None)[0]


def planes_apart(
    relaxed: RelaxedNetwork, system: Fold, start: str, rows: Rows, duals: Duals, neurons: Tensor | None
) -> tuple[LinearBounds, Apart]:
    """As `tuned_planes`, but of the target less what `neurons` (C,) of the first stage leave above their lines.

    Those lines have no offset, and any slope: they need not lie below the outputs.
    """
    box = relaxed.box
    left: list[Apart] = []
    parts = []
    for part in row_slices(len(rows.offset), TUNED_ROWS):
        some = replace(
            rows,
            sample=rows.sample[part],
            coefficient=rows.coefficient[part],
            offset=rows.offset[part],
            norm=rows.norm[part],
            window=None if rows.window is None else replace(rows.window, position=rows.window.position[part]),
        )
        tunings, below = _tunings(relaxed, system, duals.columns(part), neurons), list[tuple[InputPlanes, Tensor]]()
        tuned = partial(_tuned, tunings, below, left)
        rules: dict[type[nn.Module], Rule] = {**BACKWARD, **dict.fromkeys(FOLDABLE, tuned)}
        planes = concretise(relaxed, to_input(relaxed, some, start=start, rules=rules).dense(), box)
        for input_planes, weight in below:
            planes = _with_input_planes(planes, input_planes, weight, box)
        parts.append(planes)
    whole = LinearBounds(
        coefficient=torch.cat([planes.coefficient for planes in parts]),
        offset=torch.cat([planes.offset for planes in parts]),
        lower=torch.cat([planes.lower for planes in parts]),
    )
    none = whole.offset.new_zeros(len(whole.offset), 0)
    return whole, Apart(
        weight=torch.cat([one.weight for one in left]) if left else none,
        slope=torch.cat([one.slope for one in left]) if left else none,
    )


def least_above(planes: LinearBounds, slope: Tensor, box: Box) -> Tensor:
    """(R,) b with target_r >= <slope_r, u> + b_r wherever the plane holds in the box; `slope` (R, *input_shape)."""
    excess = (planes.coefficient - slope).flatten(1).abs()
    reach = excess @ box.radius.flatten()
    error = SAFETY * gamma(excess.shape[1] + OWN, reach.dtype) * (reach + planes.offset.abs())
    return planes.offset - reach - error


def least_sum(parts: Sequence[LinearBounds], box: Box) -> Tensor:
    """(R,) lower bounds, over the box, of sums of targets of which each part bounds one; outward.

    All parts are planes in the same perturbation, |u| <= radius of `box`.
    """
    offset = torch.stack([part.offset for part in parts])
    coefficient = torch.stack([part.coefficient for part in parts])
    radius = box.radius.flatten()
    size = offset.abs().sum(0) + coefficient.abs().sum(0).flatten(1) @ radius
    error = SAFETY * gamma(len(parts) + OWN, size.dtype) * size
    whole = LinearBounds(coefficient=coefficient.sum(0), offset=offset.sum(0) - error, lower=error)
    return least_above(whole, torch.zeros_like(whole.coefficient), box)


def _with_input_planes(planes: LinearBounds, input_planes: InputPlanes, weight: Tensor, box: Box) -> LinearBounds:
    """The bounds plus weight (R, U), <= 0, times the planes' slopes, whose offsets they hold already; outward."""
    extra = (input_planes.claimed_slope @ weight.T).T.reshape(planes.coefficient.shape)
    size = planes.coefficient.flatten(1).abs() @ box.radius.flatten() - weight @ input_planes.claimed_size
    error = SAFETY * gamma(weight.shape[1] + OWN, size.dtype) * size
    whole = LinearBounds(coefficient=planes.coefficient + extra, offset=planes.offset - error, lower=error)
    return replace(whole, lower=least_above(whole, torch.zeros_like(whole.coefficient), box))


def _tunings(relaxed: RelaxedNetwork, system: Fold, duals: Duals, apart: Tensor | None) -> dict[str, _TunedLines]:
    nodes = {node.name: node for node in relaxed.network.nodes}
    split = duals.split.T
    tunings = {}
    for stage in system.stages:
        lines = relaxed.relaxations[stage.node]
        assert isinstance(lines, Lines)
        floor = floor_of(nodes[stage.node].layer)
        alpha = duals.alpha[stage.range].T.double().clamp(floor, 1.0)
        input_planes = stage.input_planes
        upper_slope = lines.upper_slope.flatten()[stage.entry] if input_planes is None else torch.zeros_like(alpha[0])
        upper_offset = (
            lines.upper_offset.flatten()[stage.entry] if input_planes is None else input_planes.claimed_offset
        )
        below, plane = _with_spare(alpha), _with_spare(torch.ones_like(alpha))
        above, offset = _with_spare(upper_slope.expand_as(alpha)), _with_spare(upper_offset.expand_as(alpha))
        force = torch.zeros_like(below)
        here = (split >= stage.start) & (split < stage.stop)
        index = torch.where(here, split - stage.start, len(stage.entry))
        side = duals.side.T.double()
        settled = torch.where(side > 0, torch.ones_like(side), floor)
        below.scatter_(1, index, settled)
        above.scatter_(1, index, settled)
        offset.scatter_(1, index, 0.0)
        plane.scatter_(1, index, 0.0)
        force.scatter_add_(1, index, -side.sign() * duals.beta.T.double().clamp(min=0))
        rest = Settled.of(nodes[stage.node], relaxed.boxes[stage.source])
        tunings[stage.node] = _TunedLines(
            slope=rest.slope.flatten(1),
            spread=rest.spread.flatten(1).masked_fill(rest.open.flatten(1), 0.0),
            entry=stage.entry,
            lower_slope=below[:, :-1],
            upper_slope=above[:, :-1],
            upper_offset=offset[:, :-1],
            force=force[:, :-1],
            input_planes=None if input_planes is None else (input_planes, plane[:, :-1]),
            apart=apart if stage.start == 0 else None,
        )
    return tunings


def _with_spare(values: Tensor) -> Tensor:
    """A copy (R, U) with a last column that absent splits may overwrite."""
    return torch.cat([values, torch.zeros_like(values[:, :1])], dim=1)


def _tuned(
    tunings: Mapping[str, _TunedLines],
    below: list[tuple[InputPlanes, Tensor]],
    apart: list[Apart],
    relaxed: RelaxedNetwork,
    layer: nn.Module,
    node: Node,
    rows: Rows,
) -> tuple[Rows]:
    """Back through a nonlinear node with each row's own lines and multipliers.

    `below` gets planes and the coefficients (R, U_l) of the neurons below them, which leave the row here, `apart` what
    neurons leave above their lines.
    """
    own = tunings.get(node.name)
    if own is None:  # every neuron is decided, or the node lies after the system
        decided: tuple[Rows] = BACKWARD[type(layer)](relaxed, layer, node, rows)
        return decided
    rows = rows.dense()
    norm = rows.norm + own.force.abs().sum(1)
    flat = rows.coefficient.flatten(1)
    weight = flat.index_select(1, own.entry)
    negative = weight.clamp(max=0)
    if own.input_planes is not None:
        below.append((own.input_planes[0], negative * own.input_planes[1]))
    top = negative * own.upper_offset
    passed = weight * own.lower_slope + negative * (own.upper_slope - own.lower_slope) + own.force
    if own.apart is not None:
        top = top.index_fill(1, own.apart, 0.0)
        apart.append(Apart(weight=weight[:, own.apart], slope=passed[:, own.apart]))
    offset = relaxed.settle(node, replace(rows, norm=norm)) + top.sum(1)
    offset = offset + flat.clamp(max=0) @ own.spread[0]
    coefficient = (flat * own.slope).index_copy_(1, own.entry, passed)
    return (replace(rows, coefficient=coefficient.reshape(rows.coefficient.shape), offset=offset, norm=norm),)
