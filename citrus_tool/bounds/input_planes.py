"""Planes over the input's box above the neurons of the first stage, in place of lines above their inputs' intervals.

Anderson et al. 2020, "Strong mixed-integer programming formulations for trained neural networks", and Tjandraatmadja et
al. 2020, "The Convex Relaxation Barrier, Revisited": over a box of inputs, the convex hull of a ReLU is less than the
triangle over the interval of its pre-activation.
Differs from the papers in: the planes are not picked by separation. For a neuron z = a v + b over |v| <= 1, h = max(z,
floor z), any slope c gives a plane h <= c v + q with the least valid

    q = max(b + |a - c|_1, floor b + |floor a - c|_1),

so slopes c = s a, with a share s in [floor, 1] for every nonzero of a, are ascended by Adam along with the other duals,
for one margin. The chord is the plane whose shares are all its slope.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from citrus_tool.bounds.duals import GRID, Duals, Targets
from citrus_tool.bounds.execution import FoldedExecution
from citrus_tool.bounds.fold import ROW_CHUNK, Fold, InputPlanes, Stage, foldable_nodes, sparse
from citrus_tool.bounds.linear import concretise, seed, to_input
from citrus_tool.bounds.rounding import OWN, SAFETY, gamma
from citrus_tool.bounds.workspace import Schedule, Workspace, adam

SHARES = Schedule(steps=40, share_rate=0.2, decay=0.95)
"""Adam's steps for the slopes of planes: more than ROOT's, since the slopes start from the chords' and are many."""


def with_input_planes(
    execution: FoldedExecution, category: int, start: Duals, schedule: Schedule = SHARES
) -> FoldedExecution:
    """The execution with planes found for the margin over one class, on parts of the box.

    The execution as it is where its first stage is not that of the network's first nonlinear node.

    Args:
        start: of the parts, the sum of whose bounds is ascended. Planes for the whole box alone serve its parts worse.
    """
    stages = execution.system.stages
    if not stages or stages[0].node != foldable_nodes(execution.relaxed.network)[0].name:
        return execution
    planes = _SlopeShares.of(execution.system)
    system = planes.system
    duals = start
    index = torch.full((duals.alpha.shape[1],), category, device=system.floor.device)
    work = Workspace.of(system, Targets.of(system.margins, index), duals)
    share = best_share = planes.chord
    moments = (torch.zeros_like(share), torch.zeros_like(share))
    best = -math.inf
    for step in range(schedule.steps + 1):
        side = planes.set(share)
        bound = float(work.evaluate(duals).sum())
        if bound > best:
            best, best_share = bound, share
        weight = work.weight[:-1] * work.above[:-1]
        slope = (weight[planes.row] * work.point[planes.column]).sum(1)
        duals = work.climb(duals, schedule, step)
        push = adam(planes.value * slope + weight.sum(1)[planes.row] * side, moments, step)
        share = (share + schedule.share_rate * schedule.decay**step * push).clamp(max=1)
        share = torch.maximum(share, system.floor[planes.row])
    kept = (best_share * GRID).round()
    planes.set(kept / GRID)
    first = system.stages[0]
    input_planes = _claimed(execution, first, planes, kept.to(torch.uint8))
    return replace(
        execution, system=replace(system, stages=(replace(first, input_planes=input_planes), *system.stages[1:]))
    )


@dataclass(frozen=True, kw_only=True)
class _SlopeShares:
    """The nonzeros of the first stage's matrix, `row`, `column`, `value` (N,), and a system whose planes `set` changes.

    `order` (N,) puts them in the order of the transpose; `chord` (N,) are the shares of the chords.
    """

    row: Tensor
    column: Tensor
    value: Tensor
    order: Tensor
    chord: Tensor
    system: Fold
    input_planes: InputPlanes

    @staticmethod
    def of(system: Fold) -> _SlopeShares:
        first = system.stages[0]
        matrix, transpose = (m if m.layout is torch.sparse_csr else sparse(m) for m in first.at_input)
        count, _ = matrix.shape
        row = torch.repeat_interleave(torch.arange(count, device=matrix.device), matrix.crow_indices().diff())
        column = matrix.col_indices()
        blank = matrix.values().new_empty(0, dtype=torch.float64)
        input_planes = InputPlanes(
            slope=(matrix.clone(), transpose.clone()),
            offset=system.upper_offset[:count].clone(),
            share=blank,
            claimed_slope=blank,
            claimed_offset=blank,
            claimed_size=blank,
        )
        return _SlopeShares(
            row=row,
            column=column,
            value=matrix.values(),
            order=torch.argsort(column * count + row),
            chord=system.upper_slope[row, 0],
            system=replace(system, stages=(replace(first, input_planes=input_planes), *system.stages[1:])),
            input_planes=input_planes,
        )

    def set(self, share: Tensor) -> Tensor:
        """Puts slopes share * value and their offsets into the system; the offsets' derivatives (N,) in the shares."""
        input_planes, count = self.input_planes, len(self.system.stages[0].entry)
        input_planes.slope[0].values().copy_(share * self.value)
        input_planes.slope[1].values().copy_((share * self.value)[self.order])
        size, floor, shift = self.value.abs(), self.system.floor, self.system.shift[:count, 0]
        active = shift.index_add(0, self.row, size * (1 - share))
        inactive = (floor[:count] * shift).index_add(0, self.row, size * (share - floor[self.row]))
        input_planes.offset[:, 0] = torch.maximum(active, inactive)
        return size * torch.sign(inactive - active)[self.row]


def _claimed(execution: FoldedExecution, stage: Stage, planes: _SlopeShares, share: Tensor) -> InputPlanes:
    """The planes of shares (N,) uint8 with offsets that hold in real arithmetic (docs/soundness.md).

    Their slopes are taken as they are, in float64 over u; the offset is claimed from planes above z and above floor z.
    """
    relaxed, box = execution.relaxed, execution.box
    radius = box.radius.flatten()
    shares = torch.zeros(planes.input_planes.slope[0].shape, dtype=torch.uint8, device=radius.device)
    shares[planes.row, planes.column] = share
    slopes, offsets = [], []
    for place in torch.split(torch.arange(len(stage.entry), device=radius.device), ROW_CHUNK):
        entry = stage.entry[place]
        minus = torch.full_like(entry, -1, dtype=torch.float64)
        start, rows = seed(relaxed, stage.source, torch.zeros_like(entry), entry, minus)
        below = concretise(relaxed, to_input(relaxed, rows, start=start).dense(), box)  # -z >= <a, u> + o
        a, o = below.coefficient.flatten(1), below.offset
        c = -a * shares[place] / GRID
        floor = planes.system.floor[place].double()
        active = -o + (a + c).abs() @ radius
        inactive = -floor * o + (floor[:, None] * a + c).abs() @ radius
        size = o.abs() + (a.abs() + c.abs()) @ radius
        slopes.append(c)
        offsets.append(torch.maximum(active, inactive) + SAFETY * gamma(len(radius) + OWN, o.dtype) * size)
    slope = torch.cat(slopes)
    reach = slope.abs() @ radius
    return replace(
        planes.input_planes,
        share=shares,
        claimed_slope=sparse(slope.T),
        claimed_offset=torch.cat(offsets),
        claimed_size=reach * (1 + SAFETY * gamma(len(radius) + OWN, reach.dtype)),
    )
