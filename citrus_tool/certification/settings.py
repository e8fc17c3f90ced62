"""What is chosen of a certification beside the network, the data and the threat."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from citrus_tool.bounds.crown import Intermediate
from citrus_tool.certification.individual import BoundsName
from citrus_tool.certification.milp import SolverName
from citrus_tool.errors import UsageError

Protocol = Literal["all", "correct"]
Scope = Literal["groups", "dataset"]


@dataclass(frozen=True, kw_only=True)
class CertifySettings:
    """What `certify_uap` does beside the network, the data and eps. Raises UsageError for values that make no sense.

    Attributes:
        group_size: inputs that share one perturbation; the last group may be smaller.
        protocol: `all` inputs in order, misclassified ones count as lost; or `correct`: of the first 3 * limit inputs
            the misclassified ones are dropped and the first `limit` others kept (RaVeN, RACoon, RABBit).
        scope: one perturbation for each of the consecutive `groups`, or one for the whole `dataset`, whose certificate
            is never below that of the groups (dataset.py).
        bounds: the strongest bounds in use; `ibp` stops after IBP, `crown` runs IBP, CROWN and the MILP, `alpha` puts
            alpha-CROWN before the MILP, `full` alpha-CROWN, branch and bound on each input, and the cross-execution
            loop in place of the MILP (networks that branch and bound cannot split keep the MILP).
        branch_nodes: parts of the box that branch and bound may bound for one input; this budget is deterministic.
        branch_seconds: seconds that it may take for one input that CROWN leaves open, on average over a batch; a result
            that this limit cuts short depends on the machine.
        intermediate: bounds of hidden neurons, by CROWN intersected with IBP, or by CROWN alone (as published).
        solver, threads: of the MILP.
        time_limit: seconds a group that the MILP or the cross-execution loop may take; the search across groups may
            take as much for each group with an open input.
        attack_steps, attack_restarts, seed: of the attack on the shared perturbation.
        limit: how many inputs are judged; None: all.
    """

    group_size: int = 5
    protocol: Protocol = "all"
    scope: Scope = "groups"
    bounds: BoundsName = "crown"
    intermediate: Intermediate = "intersect"
    branch_nodes: int = 4000
    branch_seconds: float = 60.0
    solver: SolverName = "cbc"
    time_limit: float = 60.0
    threads: int = 1
    attack_steps: int = 50
    attack_restarts: int = 6
    seed: int = 0
    limit: int | None = None

    def __post_init__(self) -> None:
        choices = {
            "protocol": Protocol,
            "scope": Scope,
            "bounds": BoundsName,
            "intermediate": Intermediate,
            "solver": SolverName,
        }
        for field, kind in choices.items():
            if getattr(self, field) not in get_args(kind):
                raise UsageError(f"{field} is {getattr(self, field)!r}; choose one of {', '.join(get_args(kind))}.")
        least = {"group_size": 1, "threads": 1, "attack_steps": 0, "attack_restarts": 0, "seed": 0, "limit": 1}
        least["branch_nodes"] = 1
        for field, smallest in least.items():
            value = getattr(self, field)
            if value is not None and not (isinstance(value, int) and value >= smallest):
                raise UsageError(f"{field} is {value!r}; it must be an integer of at least {smallest}.")
        for field in ("time_limit", "branch_seconds"):
            value = getattr(self, field)
            if not (math.isfinite(value) and value > 0):
                raise UsageError(f"{field} is {value!r}; it must be a positive number of seconds.")
