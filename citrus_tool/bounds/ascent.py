"""The ascent of dual bounds: alpha-CROWN, and beta-CROWN on parts of a box.

Xu et al. 2021, "Fast and Complete" (alpha-CROWN); Wang et al. 2021, "Beta-CROWN", theorem 3.1 (duals.py).
Differs from the papers in: (1) the ascent runs on the folded system (bounds/fold.py), where one step is a few small
products, and by hand: the gradient of the dual bound is the relaxed network at the minimising point; (2) the ascent
may be in float32 and certifies nothing. Whatever slopes in [floor, 1] and multipliers >= 0 it finds, the bound that is
claimed is one backward pass of bounds/linear.py with them, in float64 with outward errors (`claims.tuned_planes`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from citrus_tool.bounds.duals import Duals, JointTargets, Targets
from citrus_tool.bounds.fold import Fold
from citrus_tool.bounds.workspace import Schedule, Workspace

COLUMNS = 128
"""Functionals that are ascended together: their rows stay in cache (on ConvSmall twice as many are no faster)."""

ROOT = Schedule(steps=20)
"""alpha-CROWN's steps on a whole box: few, since branch and bound goes on where they leave a margin open."""


@dataclass(frozen=True, kw_only=True)
class Ascent:
    """What `ascend` found for D functionals.

    Attributes:
        bound: (D,) the best value of the dual bound, by plain arithmetic.
        duals: the slopes and multipliers that give it.
        weight: (U, D) coefficients of the open neurons' outputs there: what each output counts for.
        point: (d, D) the minimising v in {-1, 0, 1}.
    """

    bound: Tensor
    duals: Duals
    weight: Tensor
    point: Tensor


def ascend(
    system: Fold, targets: Targets | JointTargets, start: Duals, schedule: Schedule, *, goal: float = math.inf
) -> Ascent:
    """Maximises the dual bound of every target over slopes, multipliers and shares, from `start`.

    The bound of a target on its part of the box is, for any slopes and multipliers,

        offset + sum weight q + sum nu shift - |L|_1    nu = weight e - side beta,  L = at_input + A^T nu,

    where a neuron is replaced by the line e z + q: below (slope alpha) where its weight is positive, above where it is
    negative, itself where its sign is given; weights follow from the last stage to the first. A plane c v + q above
    (fold.InputPlanes) in place of a line adds weight c to L. The bound's gradient in alpha is weight^+ z, in beta
    -side z, z being the relaxed system's inputs at v = -sign(L); in a member's share it is the member's functional
    there, and shares move on the simplex as softmax of what Adam ascends.

    Stops early when every bound has passed `goal`. The best iterate of each column is returned.
    """
    work = Workspace.of(system, targets, start)
    best = work.evaluate(start)
    kept, current = start, start
    for step in range(schedule.steps):
        if bool((best > goal).all()):
            return _found(work, best, kept)
        current = work.climb(current, schedule, step)
        bound = work.evaluate(current)
        better = bound > best
        if step == schedule.steps - 1 and bool(better.all()):
            return _found(work, bound, current)
        kept = work.merged(kept, current, better)
        best = torch.maximum(best, bound)
    if schedule.steps:
        best = work.evaluate(kept)
    return _found(work, best, kept)


def _found(work: Workspace, bound: Tensor, duals: Duals) -> Ascent:
    """What the last evaluation, of `duals`, left in the buffers, with bounds (D,)."""
    return Ascent(bound=bound, duals=duals, weight=work.weight[:-1], point=work.point)


def mean_points(system: Fold, targets: Targets | JointTargets, start: Duals, schedule: Schedule) -> Tensor:
    """(d, D) near-optimal points v of the relaxed problems that `ascend` bounds: means of its minimising points.

    One minimising point is a corner of the box and far from optimal; the mean over the steps tends to an optimum of the
    relaxation (Nedic and Ozdaglar 2009, "Approximate primal solutions and rate analysis for dual subgradient methods").
    """
    work = Workspace.of(system, targets, start)
    work.evaluate(start)
    mean, current = torch.zeros_like(work.point), start
    for step in range(schedule.steps):
        current = work.climb(current, schedule, step)
        work.evaluate(current)
        mean += work.point
    return mean / schedule.steps
