"""From what is known of each input of a group to the group's result: how many of them one perturbation fools.

With bounds `full` by the counterexample-guided loop over joint proofs (joint_loop.py), otherwise by the MILP on the
inputs' planes (milp.py). The MILP is skipped where it cannot help: with at most one open input its value is known,
since an open input has a plane that reaches 0 in the box, so that the optimum is 1; and when the attack fooled all open
inputs with one u.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from citrus_tool.attacks.effort import Effort
from citrus_tool.attacks.universal import attack_groups
from citrus_tool.certification.chunks import Prepared
from citrus_tool.certification.conflicts import Atom
from citrus_tool.certification.dataset_scope import Remainder
from citrus_tool.certification.execution import OpenExecution, executions
from citrus_tool.certification.group import OpenGroup, refutation_of, remainder_of, timed
from citrus_tool.certification.individual import IndividualBounds
from citrus_tool.certification.joint_loop import bracket_group
from citrus_tool.certification.milp import Ending, GroupPlanes, MilpBound, bound_fooled
from citrus_tool.certification.proof import GroupProof, Refutation
from citrus_tool.certification.replay import Allows
from citrus_tool.certification.rounding_attack import rounding_witness
from citrus_tool.certification.setup import GROUP_COUNT, ROUNDING, Setup
from citrus_tool.results.certificate import GroupResult, Status

RELAXED: Final = 20
"""Open inputs whose executions are bounded together: a few, for every hidden bound is optimised with all its rows."""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A group that is done: its bracket, what it leaves open, and its proof where that is still to be recorded."""

    result: GroupResult
    remainder: Remainder
    proof: GroupProof | None


@dataclass(frozen=True, kw_only=True)
class _Counted:
    """A group's bracket, the group with its final witness, and the combinations that were refuted with their proofs."""

    result: GroupResult
    group: OpenGroup
    refuted: Collection[frozenset[Atom]] = ()
    proofs: tuple[Refutation, ...] = ()


def finished(setup: Setup, prepared: Prepared) -> Finished:
    """The group's result; its proof is recorded, or kept in scope dataset."""
    group, individual = prepared.group, prepared.individual
    with timed(group.seconds, "replay"):
        group = setup.replayer.replayed(group, group.u, individual.allows)
        group = rounded(setup, group, individual.allows)
    joint = setup.joint and group.fooled < int(group.open.sum())
    counted = (_by_joint_proofs if joint else _by_milp)(setup, group, individual)
    proof = None if setup.recorder is None else _proof(setup, group, individual, counted)
    if proof is not None and setup.settings.scope == "groups":
        setup.record(proof)
        proof = None
    remainder = remainder_of(group, individual, counted.group.u, counted.refuted, setup.threat)
    return Finished(result=counted.result, remainder=remainder, proof=proof)


def rounded(setup: Setup, group: OpenGroup, allows: Allows, tried: Sequence[Tensor] = ()) -> OpenGroup:
    """The group with a witness that the file's own rounding makes, where that fools more than its u.

    `tried` are further perturbations (C, H, W) to start from.
    """
    places = torch.nonzero(group.open).flatten()
    if not len(places):
        return group
    starts = torch.stack([torch.zeros_like(group.u), group.u, *tried])
    u = rounding_witness(
        setup.replayer,
        group.x[places],
        group.reference[places],
        group.fallen[places],
        starts,
        setup.generator(ROUNDING, group.index),
    )
    return group if u is None else setup.replayer.replayed(group, u, allows)


def executions_of(setup: Setup, rivals: Sequence[tuple[int, ...]], x: Tensor, reference: Tensor) -> list[OpenExecution]:
    """The executions of open inputs x (n, C, H, W), some at a time."""
    found: list[OpenExecution] = []
    for part in torch.split(torch.arange(len(x)), RELAXED):
        found += executions(
            setup.bounded,
            x[part].to(setup.device),
            reference[part].tolist(),
            [rivals[place] for place in part.tolist()],
            setup.threat,
        )
    return found


def _by_joint_proofs(setup: Setup, group: OpenGroup, individual: IndividualBounds) -> _Counted:
    places = torch.nonzero(group.open).flatten()
    with timed(group.seconds, "joint"):
        rivals = [tuple(individual.planes[place].rivals.tolist()) for place in places.tolist()]
        found = bracket_group(
            setup.attacked,
            executions_of(setup, rivals, group.x[places], group.reference[places]),
            group.u.to(setup.device),
            setup.threat,
            seconds=setup.settings.time_limit,
            generator=setup.generator(GROUP_COUNT, group.index),
            record=setup.recorder is not None,
        )
    with timed(group.seconds, "replay"):
        replayed = group
        for u in (group.u, found.u.cpu()):
            replayed = setup.replayer.replayed(replayed, u, individual.allows, conflicts=found.conflicts)
    proven = group.proven.clone()
    proven[places[found.conflicts.excluded()]] = True
    result = replace(replayed, proven=proven).result(
        found.fooled_upper,
        Status.TIMEOUT if found.late else Status.BOUNDED,
        f"cross-execution search: {len(found.conflicts.refuted)} combinations refuted, {found.nodes} parts bounded",
    )
    return _Counted(
        result=result,
        group=replayed,
        refuted=found.conflicts.refuted,
        proofs=tuple(refutation_of(one, places.tolist()) for one in found.grounds),
    )


def _by_milp(setup: Setup, group: OpenGroup, individual: IndividualBounds) -> _Counted:
    """By the MILP where it can help, and its proposal attacked and replayed."""
    count = int(group.open.sum())
    known = None
    if count == 0:
        known = 0, Status.EXACT, "every correct input is proven by itself"
    elif setup.settings.bounds == "ibp":
        known = count, Status.BOUNDED, "IBP only, no MILP"
    elif count == 1:
        known = count, Status.BOUNDED, "no MILP: with one open input it cannot help"
    elif group.fooled == count:
        known = count, Status.EXACT, "no MILP: one perturbation fools every open input"
    if known is not None:
        return _Counted(result=group.result(*known), group=group)
    with timed(group.seconds, "milp"):
        bound = _milp_bound(setup, group, individual)
    if group.fooled < bound.fooled_upper and bound.proposal is not None:
        with timed(group.seconds, "attack"):
            u = _attacked_from(setup, group, bound.proposal)
        with timed(group.seconds, "replay"):
            group = setup.replayer.replayed(group, u, individual.allows)
    status = {Ending.OPTIMAL: Status.BOUNDED, Ending.TIME_LIMIT: Status.TIMEOUT, Ending.NO_BOUND: Status.ERROR}
    return _Counted(result=group.result(bound.fooled_upper, status[bound.ending], bound.words), group=group)


def _milp_bound(setup: Setup, group: OpenGroup, individual: IndividualBounds) -> MilpBound:
    inputs = [individual.planes[place] for place in torch.nonzero(group.open).flatten().tolist()]
    planes = GroupPlanes(
        owner=np.concatenate([np.full(len(entry.rivals), owner) for owner, entry in enumerate(inputs)]),
        rival=np.concatenate([entry.rivals for entry in inputs]),
        coefficient=np.concatenate([entry.coefficient for entry in inputs]),
        offset=np.concatenate([entry.offset for entry in inputs]),
    )
    return bound_fooled(
        planes,
        inputs=len(inputs),
        eps=math.nextafter(setup.threat.eps, math.inf),
        known=[group.u.flatten().double().numpy()],
        solver=setup.solver,
        time_limit=setup.settings.time_limit,
        threads=setup.settings.threads,
    )


def _attacked_from(setup: Setup, group: OpenGroup, proposal: NDArray[np.float64]) -> Tensor:
    """The worst u found from the MILP's proposal."""
    u, _ = attack_groups(
        setup.attacked,
        group.x[None].to(setup.device),
        group.reference[None].to(setup.device),
        group.open[None].to(setup.device),
        setup.threat,
        Effort(steps=setup.settings.attack_steps, restarts=0),
        setup.generator(GROUP_COUNT, group.index),
        starts=torch.from_numpy(proposal).to(torch.float32).reshape(1, 1, *group.x.shape[1:]).to(setup.device),
    )
    return u[0].cpu()


def _proof(setup: Setup, group: OpenGroup, individual: IndividualBounds, counted: _Counted) -> GroupProof:
    """What is recorded of a group: proofs of single rivals of an input, and of rivals of several inputs together."""
    kinds, excluded, alone = [], [], []
    target = setup.threat.target
    for place, reference in enumerate(group.reference.tolist()):
        wanted = (set(range(setup.bounded.num_classes)) if target is None else {target}) - {reference}
        held, ibp = bool(group.held[place]), bool(group.ibp[place])
        kinds.append("lost" if not held else "interval" if ibp else "bounds")
        excluded.append(tuple(sorted(wanted if ibp else wanted.intersection(individual.excluded.get(place, ())))))
        alone += [
            Refutation(atoms=((place, one.rival),), views=(one.view,), leaves=one.leaves)
            for one in individual.proofs.get(place, ())
        ]
    return GroupProof(
        index=group.index,
        indices=group.indices,
        images=group.x,
        labels=group.labels,
        references=tuple(group.reference.tolist()),
        kinds=tuple(kinds),
        excluded=tuple(excluded),
        refutations=(*alone, *counted.proofs),
        fooled=counted.result.clean_correct - counted.result.certified,
    )
