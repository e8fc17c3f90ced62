"""Scope dataset: from the groups' results to one perturbation for all inputs, and a partition that proves its bound."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from citrus_tool.certification.chunks import attacked as attacked_groups
from citrus_tool.certification.dataset_scope import Across, Remainder, Rest, across, attacked
from citrus_tool.certification.group import OpenGroup, refutation_of, timed
from citrus_tool.certification.group_result import executions_of, rounded
from citrus_tool.certification.individual import Clean
from citrus_tool.certification.partition import Block
from citrus_tool.certification.proof import GroupProof, regrouped
from citrus_tool.certification.selection import JudgedInputs
from citrus_tool.certification.setup import ACROSS_GROUPS, Setup
from citrus_tool.errors import SoundnessError
from citrus_tool.progress import Progress
from citrus_tool.results.certificate import GroupResult, Status


@dataclass(frozen=True, kw_only=True)
class Whole:
    """What is certified of all inputs: `groups`, and for one perturbation of all of them how many inputs are held.

    `held` is None in scope groups. `perturbation` (C, H, W) float32, pixel space, the worst one found for all;
    None where none fools an input.
    """

    groups: tuple[GroupResult, ...]
    held: int | None = None
    perturbation: NDArray[np.float32] | None = None


def whole_data_set(
    setup: Setup,
    groups: Sequence[GroupResult],
    remainders: Mapping[int, Remainder],
    proofs: Mapping[int, GroupProof],
    selection: JudgedInputs,
    progress: Progress,
) -> Whole:
    """The groups of a partition chosen for one perturbation of the whole data set, and how many that leaves held.

    Args:
        groups: the results of the consecutive groups; `remainders`, and `proofs` if recorded, by their index.

    Raises:
        SoundnessError: an open input has no rival that may win, or as `Replayer.replayed`.
    """
    held = sum(group.clean_correct for group in groups)
    rest = Rest.of([remainders[group.index] for group in groups])
    if not rest.inputs:
        for proof in proofs.values():
            setup.record(proof)
        return Whole(groups=tuple(groups), held=held)
    seconds: dict[str, float] = {}
    clean, x = selection.rows(rest.inputs), setup.data.pixels(torch.tensor(rest.inputs))
    found: Across | None = None
    with timed(seconds, "dataset"):
        if setup.joint:
            found = _across(setup, rest, x, clean, progress)
            u = found.u
        else:
            u = attacked(
                setup.attacked,
                x.to(setup.device),
                clean.reference.to(setup.device),
                rest.tried,
                setup.threat,
                setup.generator(ACROSS_GROUPS, 0),
            ).best
    open_inputs = _as_group(setup, rest, x, clean.reference)
    with timed(seconds, "replay"):
        conflicts = None if found is None else found.conflicts
        open_inputs = setup.replayer.replayed(open_inputs, u.cpu(), rest.allows, conflicts=conflicts)
        open_inputs = rounded(setup, open_inputs, rest.allows, rest.tried)
        open_inputs = setup.replayer.replayed(open_inputs, open_inputs.u, rest.allows, conflicts=conflicts)
    chosen = tuple(groups)
    if found is not None:
        chosen = _partitioned(setup, groups, open_inputs, rest, found, seconds)
        across_groups = [refutation_of(some, range(len(rest.inputs))) for some in found.grounds]
        if setup.recorder is not None:
            for proof in regrouped(proofs, rest.inputs, found.blocks, across_groups):
                setup.record(proof)
    return Whole(
        groups=chosen,
        held=held - open_inputs.fooled,
        perturbation=open_inputs.u.numpy() if open_inputs.fooled else None,
    )


def _across(setup: Setup, rest: Rest, x: Tensor, clean: Clean, progress: Progress) -> Across:
    """Joint proofs across the groups."""
    if not all(rest.rivals):
        raise SoundnessError(
            "data set: an open input has no label that may win; the certificate is void, please report the"
            " network and the settings."
        )
    return across(
        setup.attacked,
        executions_of(setup, rest.rivals, x, clean.reference),
        rest,
        setup.threat,
        seconds=setup.settings.time_limit * len(rest.given),
        generator=setup.generator(ACROSS_GROUPS, 0),
        progress=progress,
        record=setup.recorder is not None,
    )


def _as_group(setup: Setup, rest: Rest, x: Tensor, reference: Tensor) -> OpenGroup:
    """All open inputs as one group, without a witness."""
    none = torch.zeros(len(rest.inputs), dtype=torch.bool)
    return OpenGroup(
        index=0,
        indices=rest.inputs,
        labels=tuple(setup.data.labels[list(rest.inputs)].tolist()),
        x=x,
        reference=reference,
        held=~none,
        ibp=none,
        proven=none,
        u=torch.zeros_like(x[0]),
        fallen=none,
        seconds={},
    )


def _partitioned(
    setup: Setup,
    groups: Sequence[GroupResult],
    open_inputs: OpenGroup,
    rest: Rest,
    found: Across,
    seconds: dict[str, float],
) -> tuple[GroupResult, ...]:
    """The groups less their open inputs, then the blocks of the partition of those, each attacked by itself."""
    blocks = [open_inputs.of(block.members, index) for index, block in enumerate(found.blocks)]
    members = [torch.tensor(block.members) for block in found.blocks]
    with timed(seconds, "attack"):
        worst = attacked_groups(setup, len(groups), members, open_inputs.x, open_inputs.reference, open_inputs.held)
    share = {stage: value / len(blocks) for stage, value in seconds.items()}
    chosen = _less(groups, set(open_inputs.indices))
    excluded = set(found.conflicts.excluded())
    for number, (one, block) in enumerate(zip(blocks, found.blocks, strict=True)):
        allows = partial(_allowed, rest, block)
        for u in (open_inputs.u, worst[number]):
            one = setup.replayer.replayed(one, u, allows)
        one = rounded(setup, one, allows)
        proven = torch.tensor([member in excluded for member in block.members])
        one = replace(one, index=len(chosen), seconds=share, proven=proven)
        words = f"at most {block.bound} of {len(block.members)} fooled at once"
        chosen.append(one.result(block.bound, Status.BOUNDED if found.complete else Status.TIMEOUT, words))
    return tuple(chosen)


def _allowed(rest: Rest, block: Block, place: int, rivals: NDArray[np.int64], u: NDArray[np.float64]) -> bool:
    """`Rest.allows` by place in a block."""
    return rest.allows(block.members[place], rivals, u)


def _less(groups: Sequence[GroupResult], open_inputs: Collection[int]) -> list[GroupResult]:
    """The groups without their open inputs, those that keep an input, numbered anew."""
    found: list[GroupResult] = []
    for group in groups:
        kept = tuple(index for index in group.indices if index not in open_inputs)
        if kept:
            found.append(group.without(len(group.indices) - len(kept), kept, index=len(found)))
    return found
