"""The linear program of a part of a box on which every neuron that counts has a given sign.

There the outputs are multiples of the inputs, so the functionals F_m of a folded system (fold.py) are affine in the
perturbation v, |v| <= 1, and the best dual bound over multipliers and shares is the optimum of

    min t    F_m(v) <= t for every member m,    side_j z_j(v) >= 0 for every given sign j

(the dual of Beta-CROWN's problem, Wang et al. 2021, theorem 3.1, without its ascent). Where no v has the signs, the
multipliers that show it are those of `min s` with side_j z_j(v) + s >= 0. HiGHS solves both in floating-point
arithmetic. Its multipliers are candidates that a claim re-evaluates (`claims.tuned_planes`); they prove nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linprog
from torch import Tensor

from citrus_tool.bounds.duals import Duals, JointTargets, Targets
from citrus_tool.bounds.fold import Fold

Array = NDArray[np.float64]

OPTIMAL: Final = 0
INFEASIBLE: Final = 2
"""SciPy's codes for how a program ended."""
PRECISION: Final = 1e-9
"""HiGHS's tolerances of feasibility, absolute: rows are scaled to a size of at most 1, so that it is a relative one."""
BEYOND: Final = 2.0
"""How many times the multipliers of contradicting signs outweigh the functionals: above 1, so that rounding does not
undo the contradiction."""


@dataclass(frozen=True, kw_only=True)
class Vertex:
    """What a program found for one part.

    Attributes:
        beta: (K,) multipliers >= 0 of the K signs.
        share: (M,) weights >= 0 of the members, which sum to 1; None where the functional has no members.
        point: (d,) v in [-1, 1] that is best for all members together; None where no v has the signs.
    """

    beta: Tensor
    share: Tensor | None
    point: Tensor | None


def solve(system: Fold, targets: Targets | JointTargets, duals: Duals) -> Vertex | None:
    """The best multipliers and shares, and the best point, of one target on its part of the box.

    Args:
        targets: of one column, D = 1.
        duals: of one column whose neurons without a sign do not count; their slopes stand for them.

    The program is solved in float64; the result has the dtype and device of `duals`. None is returned where HiGHS finds
    neither an optimum nor a contradiction.
    """
    z, z_offset, f, f_offset = _affine(system, targets, duals)
    side = _array(duals.side[:, 0])
    rows, limit = -side[:, None] * z, side * z_offset  # rows v <= limit where the signs hold
    size = np.abs(rows).sum(1) + np.abs(limit)
    size[size == 0] = 1.0
    reach = float((np.abs(f).sum(1) + np.abs(f_offset)).max()) or 1.0
    rows, limit = rows / size[:, None], limit / size
    members, signs, width = len(f), len(rows), f.shape[1]
    found = _minimised(
        np.concatenate([np.column_stack([f / reach, -np.ones(members)]), np.column_stack([rows, np.zeros(signs)])]),
        np.concatenate([-f_offset / reach, limit]),
    )
    share = np.full(members, 1 / members)
    if found.status == OPTIMAL:
        multiplier = np.maximum(-found.ineqlin.marginals, 0.0)
        share, beta, point = multiplier[:members], multiplier[members:] * reach / size, found.x[:width]
        share = share / share.sum()
    elif found.status == INFEASIBLE:
        found = _minimised(np.column_stack([rows, -np.ones(signs)]), limit)
        if found.status != OPTIMAL or found.fun <= PRECISION:
            return None
        beta, point = np.maximum(-found.ineqlin.marginals, 0.0) * (BEYOND * reach / found.fun) / size, None
    else:
        return None
    return Vertex(
        beta=torch.from_numpy(beta).to(duals.beta),
        share=None if duals.share is None else torch.from_numpy(share).to(duals.share),
        point=None if point is None else torch.from_numpy(point.clip(-1.0, 1.0)).to(system.radius),
    )


def _affine(system: Fold, targets: Targets | JointTargets, duals: Duals) -> tuple[Array, Array, Array, Array]:
    """The K split neurons' inputs and the M functionals on the part: slopes (K, d), (M, d), offsets (K,), (M,)."""
    width = len(system.radius)
    slope = duals.alpha[:, 0].double().cpu()
    split, side = duals.split[:, 0].cpu(), duals.side[:, 0].double().cpu()
    slope[split] = torch.where(side > 0, torch.ones_like(side), system.floor.double().cpu()[split])
    z, z_offset = slope.new_zeros(len(slope), width), torch.zeros_like(slope)
    for stage in system.stages:
        inputs, earlier = stage.inputs, stage.earlier
        at_hidden = inputs.at_hidden.double().cpu() * slope[earlier]
        z[stage.range] = inputs.at_input.double().cpu() + at_hidden @ z[earlier]
        z_offset[stage.range] = inputs.offset.double().cpu() + at_hidden @ z_offset[earlier]
    at_input = targets.at_input[..., 0].double().cpu().reshape(-1, width)
    offset = targets.offset[..., 0].double().cpu().reshape(-1)
    at_hidden = targets.at_hidden[:, 0].double().cpu() * slope
    bounds = targets.member if isinstance(targets, JointTargets) else (0, len(slope))
    parts = [slice(first, last) for first, last in pairwise(bounds)]
    f = at_input + torch.stack([at_hidden[part] @ z[part] for part in parts])
    f_offset = offset + torch.stack([at_hidden[part] @ z_offset[part] for part in parts])
    return _array(z[split]), _array(z_offset[split]), _array(f), _array(f_offset)


def _minimised(matrix: Array, limit: Array) -> Any:
    """SciPy's result of minimising the last of n variables x, the others in [-1, 1], (r, n) `matrix` x <= `limit`."""
    cost = np.zeros(matrix.shape[1])
    cost[-1] = 1.0
    return linprog(
        cost,
        A_ub=matrix,
        b_ub=limit,
        bounds=[(-1.0, 1.0)] * (len(cost) - 1) + [(None, None)],
        method="highs",
        options={"primal_feasibility_tolerance": PRECISION, "dual_feasibility_tolerance": PRECISION},
    )


def _array(values: Tensor) -> Array:
    """The values, of any shape, in NumPy's float64."""
    found: Array = values.detach().double().cpu().numpy()
    return found
