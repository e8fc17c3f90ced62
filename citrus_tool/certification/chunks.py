"""The stages that run on many groups at once: bounds on each input alone, and the attack on each group."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from citrus_tool.attacks.effort import Effort
from citrus_tool.attacks.universal import attack_groups
from citrus_tool.certification.branch import Budget
from citrus_tool.certification.group import OpenGroup, timed
from citrus_tool.certification.individual import Clean, IndividualBounds, bound_individually
from citrus_tool.certification.selection import JudgedInputs
from citrus_tool.certification.setup import BATCHED_ATTACK, INDIVIDUAL_ATTACK, Setup
from citrus_tool.errors import UsageError

CHUNK_INPUTS: Final = 500
"""Inputs that go through the batched stages together, without branch and bound: many, so that batches are full."""
BRANCHED_INPUTS: Final = 100
"""Inputs that go through them together with branch and bound: few, for an input takes seconds then, and the journal
gets the groups of a chunk only when the whole chunk is done."""
CHUNK_BYTES: Final = 2**29
"""Size of a chunk's planes in bytes, at most: half a GiB beside the networks."""
INDIVIDUAL_RESTARTS: Final = 2
"""Restarts of the attack on each input alone, at most: it only has to spare foolable inputs the branching."""


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Groups that go through the batched stages together.

    Attributes:
        first: number of the first of them.
        indices, clean: of their n inputs; `indices` (n,) in the data.
        skip: numbers of groups that are done already. The batched stages run on the whole chunk all the same, so that a
            resumed run gives the same result as an uninterrupted one: the attack's random numbers depend on the batch.
    """

    first: int
    indices: Tensor
    clean: Clean
    skip: frozenset[int]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A group behind the batched stages, and what these found about each of its inputs, by place in the group."""

    group: OpenGroup
    individual: IndividualBounds


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How groups are cut into chunks: `chunks` are ranges of group numbers of at most `size` groups."""

    chunks: tuple[range, ...]
    size: int

    @staticmethod
    def of(setup: Setup, groups: int, part: tuple[int, int] | None) -> Plan:
        """All groups in order; with a part (i, n) only every n-th chunk, from the i-th.

        Raises UsageError for a part that is empty.
        """
        per_input = 8 * setup.bounded.num_classes * math.prod(setup.bounded.input_shape)
        inputs = CHUNK_INPUTS if setup.settings.bounds in ("ibp", "crown") else BRANCHED_INPUTS
        size = max(1, min(inputs, CHUNK_BYTES // per_input) // setup.settings.group_size)
        chunks = tuple(range(first, min(first + size, groups)) for first in range(0, groups, size))
        if part is not None:
            number, parts = part
            if not 1 <= number <= parts <= len(chunks):
                raise UsageError(
                    f"part {number}/{parts} of {len(chunks)} batches of {size} groups; parts are 1/N to N/N, N at most"
                    f" {len(chunks)}."
                )
            chunks = chunks[number - 1 :: parts]
        return Plan(chunks=chunks, size=size)

    @property
    def groups(self) -> tuple[int, ...]:
        """Numbers of all groups in the chunks."""
        return tuple(group for chunk in self.chunks for group in chunk)

    def todo(self, selection: JudgedInputs, done: Collection[int]) -> list[Chunk]:
        """The chunks with a group that is not done."""
        found = []
        for groups in self.chunks:
            skip = frozenset(done).intersection(groups)
            if len(skip) < len(groups):
                indices, clean = selection.of(groups)
                found.append(Chunk(first=groups.start, indices=indices, clean=clean, skip=skip))
        return found


def prepared(setup: Setup, chunk: Chunk) -> list[Prepared]:
    """The groups of one chunk but those that are done, behind the batched stages."""
    settings, indices, clean = setup.settings, chunk.indices, chunk.clean
    x = setup.data.pixels(indices)
    seconds: dict[str, float] = {}
    individual = bound_individually(
        setup.bounded,
        x,
        clean,
        setup.threat,
        bounds=settings.bounds,
        intermediate=settings.intermediate,
        budget=Budget(
            nodes=settings.branch_nodes,
            plane_nodes=0 if setup.joint else Budget.plane_nodes,
            seconds=settings.branch_seconds,
            attack_steps=settings.attack_steps,
            attack_restarts=min(INDIVIDUAL_RESTARTS, settings.attack_restarts),
        ),
        generator=setup.generator(INDIVIDUAL_ATTACK, chunk.first),
        record=setup.recorder is not None,
    )
    seconds.update(individual.seconds)
    members = torch.split(torch.arange(len(indices)), settings.group_size)
    with timed(seconds, "attack"):
        u = attacked(setup, chunk.first, members, x, clean.reference, clean.held & ~individual.proven)
    share = {stage: value / len(members) for stage, value in seconds.items()}
    found = []
    for number, some in enumerate(members):
        if chunk.first + number in chunk.skip:
            continue
        own = individual.select(some)
        group = OpenGroup(
            index=chunk.first + number,
            indices=tuple(indices[some].tolist()),
            labels=tuple(setup.data.labels[indices[some]].tolist()),
            x=x[some],
            reference=clean.reference[some],
            held=clean.held[some],
            ibp=own.ibp,
            proven=own.proven,
            u=u[number],
            fallen=torch.zeros(len(some), dtype=torch.bool),
            seconds=dict(share),
        )
        found.append(Prepared(group=group, individual=own))
    return found


def attacked(
    setup: Setup, first: int, members: Sequence[Tensor], x: Tensor, reference: Tensor, present: Tensor
) -> Tensor:
    """The worst u found for each group against its `present` inputs; (g, C, H, W) on the CPU.

    Args:
        first: number that the random numbers depend on.
        members: each group's inputs, as positions among the n inputs of `x`, `reference` and `present`.
    """
    k = max(len(some) for some in members)
    index = torch.stack([torch.cat([some, some[-1:].expand(k - len(some))]) for some in members])  # smaller ones padded
    real = torch.stack([torch.arange(k) < len(some) for some in members])
    u, _ = attack_groups(
        setup.attacked,
        x[index].to(setup.device),
        reference[index].to(setup.device),
        (present[index] & real).to(setup.device),
        setup.threat,
        Effort(steps=setup.settings.attack_steps, restarts=setup.settings.attack_restarts),
        setup.generator(BATCHED_ATTACK, first),
    )
    return u.cpu()
