"""One perturbation for a whole data set: which open inputs of different groups can be fooled together.

The worst case over all u of how many inputs of a data set are lost is at most the sum, over the blocks of any partition
of the inputs, of each block's worst case (Theorem 3 of the paper). The groups' own searches leave inputs open; here
pairs of those, across the groups, are refuted by products of their factors (part_products.py) and by joint searches
(joint.py), easiest first, and what is refuted chooses the partition (partition.py).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, combinations, pairwise, product
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from citrus_tool.attacks.dataset import attack_dataset
from citrus_tool.attacks.effort import Effort
from citrus_tool.attacks.universal import attack_groups
from citrus_tool.bounds.rounding import exact_products
from citrus_tool.certification.conflicts import Atom, Combination, Conflicts
from citrus_tool.certification.execution import OpenExecution
from citrus_tool.certification.joint_loop import PRODUCTS, Grounds, JointLoop
from citrus_tool.certification.part_products import multiply
from citrus_tool.certification.partition import Block, block, partition
from citrus_tool.certification.witnesses import Witnesses
from citrus_tool.network import Network
from citrus_tool.progress import Progress
from citrus_tool.threat import Threat

EFFORT: Final = Effort(steps=200, restarts=6)
"""Of the attack on all open inputs at once: it is made once for a data set, and its count bounds the result."""
TRIPLES: Final = 4000
"""Triples of inputs that are tried, at most."""
SEARCHED: Final = 300
"""Open inputs that pairs are made of, at most: those nearest to a proof."""
PAIR_EFFORT: Final = Effort(steps=30, restarts=2)
"""Of the attack on a pair or triple of open inputs: small, for there are thousands of pairs."""
ATTACKED: Final = 64
"""Pairs that are attacked together."""
JUDGED: Final = 16
"""Perturbations that are tried on all open inputs together."""
ROUNDS: Final = 4
"""Turns of a pair's joint search (joint_loop.TURNS)."""


@dataclass(frozen=True, kw_only=True)
class Remainder:
    """What a group's own stages leave open.

    Attributes:
        inputs: the open inputs, as indices into the data split.
        rivals: of each, the rivals that may win.
        gaps: of each, how far below 0 the lowest of its rivals' bounds is (in logits): smaller is nearer to a proof.
        refuted: combinations of (place in `inputs`, rival) that no one perturbation makes happen together.
        u: (C, H, W) float32, the group's worst perturbation known; None in a resumed run.
    """

    inputs: tuple[int, ...]
    rivals: tuple[tuple[int, ...], ...]
    gaps: tuple[float, ...]
    refuted: tuple[Combination, ...]
    u: Tensor | None

    def to_json(self) -> dict[str, Any]:
        """Everything but `u`."""
        return {
            "inputs": list(self.inputs),
            "labels": [list(rivals) for rivals in self.rivals],
            "gaps": list(self.gaps),
            "refuted": [[list(atom) for atom in some] for some in self.refuted],
        }

    @staticmethod
    def of(content: Mapping[str, Any]) -> Remainder:
        """The inverse of `to_json`; raises KeyError, TypeError or ValueError where the content is something else."""
        return Remainder(
            inputs=tuple(content["inputs"]),
            rivals=tuple(tuple(rivals) for rivals in content["labels"]),
            gaps=tuple(float(gap) for gap in content["gaps"]),
            refuted=tuple(tuple((int(place), int(rival)) for place, rival in some) for some in content["refuted"]),
            u=None,
        )


@dataclass(frozen=True, kw_only=True)
class Rest:
    """The open inputs of all groups, numbered one after the other.

    Attributes:
        inputs, rivals, gaps: as in Remainder.
        given: the groups' open inputs, by number.
        refuted: combinations of atoms (number, rival).
        tried: (p, C, H, W) the groups' worst perturbations; none in a resumed run.
    """

    inputs: tuple[int, ...]
    rivals: tuple[tuple[int, ...], ...]
    gaps: tuple[float, ...]
    given: tuple[tuple[int, ...], ...]
    refuted: frozenset[frozenset[Atom]]
    tried: tuple[Tensor, ...]

    @staticmethod
    def of(remainders: Sequence[Remainder]) -> Rest:
        """What the groups leave open."""
        some = [one for one in remainders if one.inputs]
        starts = list(accumulate((len(one.inputs) for one in some), initial=0))
        return Rest(
            inputs=tuple(index for one in some for index in one.inputs),
            rivals=tuple(rivals for one in some for rivals in one.rivals),
            gaps=tuple(gap for one in some for gap in one.gaps),
            given=tuple(tuple(range(first, last)) for first, last in pairwise(starts)),
            refuted=frozenset(
                frozenset((first + place, rival) for place, rival in old)
                for first, one in zip(starts, some, strict=False)
                for old in one.refuted
            ),
            tried=tuple(one.u for one in some if one.u is not None),
        )

    def allows(self, number: int, rivals: NDArray[np.int64], u: NDArray[np.float64]) -> bool:
        """Whether all these rivals of an open input may win, as far as bounds over the whole box say (at any `u`)."""
        return not self.rivals[number] or set(rivals.tolist()) <= set(self.rivals[number])


@dataclass(frozen=True, kw_only=True)
class Across:
    """What is known about all n open inputs together.

    Attributes:
        blocks: the chosen partition of the open inputs, each block with the most that one perturbation fools of it.
        conflicts: refuted combinations; grounds: for those that were found here, if recorded.
        u: (C, H, W) float32 perturbation that fools most of all, as far as PyTorch's float32 goes; a replay decides.
        nodes: parts of the box bounded.  complete: no pair was left undecided for want of time.
    """

    blocks: tuple[Block, ...]
    conflicts: Conflicts
    grounds: tuple[Grounds, ...]
    u: Tensor
    nodes: int
    complete: bool


def across(
    network: Network,
    inputs: Sequence[OpenExecution],
    rest: Rest,
    threat: Threat,
    *,
    seconds: float,
    generator: torch.Generator,
    progress: Progress,
    record: bool = False,
) -> Across:
    """Looks for pairs of open inputs that no perturbation fools together, and for the partition they allow.

    Args:
        network: in float32, for trying perturbations.
        inputs: the executions of the open inputs of `rest`, at least one.
        seconds: after which no further pair is begun.
        record: keeps the grounds.
    """
    conflicts = Conflicts(rivals=rest.rivals, refuted=set(rest.refuted))
    x = torch.stack([one.x for one in inputs])
    reference = torch.tensor([one.member.execution.label for one in inputs], device=x.device)
    witnesses = attacked(network, x, reference, rest.tried, threat, generator)
    loop = JointLoop(inputs, witnesses, time.monotonic() + seconds, generator, record=record)
    loop.conflicts = conflicts
    near = sorted(range(len(inputs)), key=lambda number: rest.gaps[number])[:SEARCHED]
    with torch.no_grad(), exact_products():
        complete = _refute_pairs(loop, sorted(near), progress) and len(near) == len(inputs)
        blocks = _united(loop, partition(conflicts, rest.given), progress)
    return Across(
        blocks=blocks,
        conflicts=conflicts,
        grounds=tuple(loop.grounds[old] for old in conflicts.refuted if old in loop.grounds),
        u=witnesses.best,
        nodes=loop.nodes,
        complete=complete,
    )


def attacked(
    network: Network,
    x: Tensor,
    reference: Tensor,
    tried: Sequence[Tensor],
    threat: Threat,
    generator: torch.Generator,
) -> Witnesses:
    """What the perturbations `tried` (C, H, W), and one for all inputs x (n, C, H, W) at once, fool of them.

    `reference` (n,) are the classes that must stay above.
    """
    witnesses = Witnesses(network=network, x=x, reference=reference, threat=threat, best=torch.zeros_like(x[0]))
    u, _ = attack_dataset(network, x, reference, threat, EFFORT, generator)
    with torch.no_grad():
        for one in (*tried, u):
            witnesses.judge(one[None].to(x))
    return witnesses


def _refute_pairs(loop: JointLoop, members: Sequence[int], progress: Progress) -> bool:
    """Refutes pairs of atoms of different inputs while there is time; whether it lasted for all of them.

    By products of factors alone; an attack on what is left; then joint searches in rounds, smallest gap first.
    """
    rivals = loop.conflicts.rivals
    atoms = [(member, rival) for member in members for rival in rivals[member]]
    progress.start("fronts", len(atoms), "labels")
    for atom in atoms:
        if not loop.conflicts.covers([atom]):
            loop.factor_of(atom, wide=False)
        progress.advance(1)
    pairs: list[Combination] = [pair for pair in combinations(atoms, 2) if pair[0][0] != pair[1][0]]
    progress.start("pairs", len(pairs), "pairs")
    rated: list[tuple[float, Combination]] = []
    for pair in pairs:
        if time.monotonic() >= loop.deadline:
            return False
        if _undecided(loop, pair):
            rated += _multiplied(loop, pair)
        progress.advance(1)
    left: list[Combination] = [pair for _, pair in sorted(rated)]
    progress.start("pair attacks", len(left), "pairs")
    for first in range(0, len(left), ATTACKED):
        if time.monotonic() >= loop.deadline:
            return False
        some = [pair for pair in left[first : first + ATTACKED] if _undecided(loop, pair)]
        _attack(loop, [[member for member, _ in pair] for pair in some])
        progress.advance(len(left[first : first + ATTACKED]))
    for number in range(ROUNDS):
        left = [pair for pair in left if _undecided(loop, pair)]
        left.sort(key=lambda pair: loop.tasks[pair].gap if pair in loop.tasks else 0.0)
        progress.start(f"joint search {number + 1}/{ROUNDS}", len(left), "pairs")
        for pair in left:
            if time.monotonic() >= loop.deadline:
                return False
            task = loop.tasks.get(pair)
            if _undecided(loop, pair) and (task is None or task.search is not None):
                loop.next_turn(pair)
            progress.advance(1)
    return True


def _united(loop: JointLoop, blocks: Sequence[Block], progress: Progress) -> tuple[Block, ...]:
    """The blocks with inputs that stand alone united to triples that no one perturbation fools, as far as time allows.

    Witnesses first are triples whose inputs the known perturbations rarely fool together.
    """
    alone = [one.members[0] for one in blocks if len(one.members) == one.bound == 1]
    seen = torch.zeros(len(loop.witnesses.seen), len(loop.inputs))
    for row, happening in enumerate(loop.witnesses.seen):
        seen[row, [member for member, _ in happening]] = 1
    often = (seen.T @ seen).tolist()

    def known(triple: Sequence[int]) -> bool:
        return any(set(triple) <= {member for member, _ in happening} for happening in loop.witnesses.seen)

    triples = [t for t in combinations(alone, 3) if not bool(seen[:, list(t)].all(1).any())]
    triples.sort(key=lambda t: sum(often[i][j] for i, j in combinations(t, 2)))
    progress.start("triples", len(alone), "inputs")
    found: list[Block] = []
    used: set[int] = set()
    todo = triples[:TRIPLES]
    while todo and time.monotonic() < loop.deadline:
        some, todo = todo[:ATTACKED], todo[ATTACKED:]
        some = [t for t in some if not used.intersection(t) and not known(t)]
        _attack(loop, some)
        for triple in some:
            if not used.intersection(triple) and not known(triple) and _excluded(loop, triple):
                found.append(block(loop.conflicts, triple))
                used.update(triple)
                progress.advance(3)
    return tuple(
        sorted([*found, *(one for one in blocks if not used.intersection(one.members))], key=lambda one: one.members)
    )


def _excluded(loop: JointLoop, members: Sequence[int]) -> bool:
    """Whether no perturbation fools all these inputs, whatever their rivals, as far as joint searches show."""
    for some in product(*([(member, rival) for rival in loop.conflicts.rivals[member]] for member in members)):
        for _ in range(ROUNDS):
            if not _undecided(loop, some) or time.monotonic() >= loop.deadline:
                break
            task = loop.tasks.get(some)
            if task is not None and task.search is None:
                break
            loop.next_turn(some)
        if not loop.conflicts.covers(some):
            return False
    return True


def _undecided(loop: JointLoop, pair: Combination) -> bool:
    return not loop.conflicts.covers(pair) and not loop.witnesses.happened(frozenset(pair))


def _multiplied(loop: JointLoop, pair: Combination) -> list[tuple[float, Combination]]:
    """Refutes the pair by its factors' products alone; otherwise it comes back, with the share of open products."""
    factors = [factor for atom in pair if (factor := loop.factor_of(atom, wide=False)) is not None]
    if len(factors) < len(pair):  # one of the atoms was refuted on the way
        return []
    products = multiply(factors, loop.inputs[pair[0][0]].member.execution.box, limit=PRODUCTS)
    if products is None:
        return [(1.0, pair)]
    if len(products.open):
        return [(len(products.open) / (len(factors[0]) * len(factors[1])), pair)]
    loop.first_bound(pair)
    return []


def _attack(loop: JointLoop, sets: Sequence[Sequence[int]]) -> None:
    """Tries to fool the inputs of each set together; all sets are of one size."""
    if not sets:
        return
    witnesses = loop.witnesses
    owners = torch.tensor(sets, device=witnesses.x.device)
    with torch.enable_grad():
        u, _ = attack_groups(
            witnesses.network,
            witnesses.x[owners],
            witnesses.reference[owners],
            torch.ones_like(owners, dtype=torch.bool),
            witnesses.threat,
            PAIR_EFFORT,
            loop.generator,
        )
    for part in torch.split(u, JUDGED):
        witnesses.judge(part)
