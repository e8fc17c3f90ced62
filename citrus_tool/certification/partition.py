"""Which inputs share a group: Theorem 3 of the paper holds for every partition of a data set.

Given refuted combinations over all open inputs of a data set, sum over the blocks of a partition of the most inputs of
a block that can be fooled at once bounds how many one perturbation fools in all. Consecutive groups are one partition.
Inputs of which each two exclude each other are never fooled together, so that a cover of the inputs by such cliques
counts one for each clique: a colouring of the graph of the pairs that may happen. Blocks whose union counts for less
than the two of them are merged. The best of what is tried is taken, never one that is worse than the given blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from itertools import combinations
from typing import Final

import networkx

from citrus_tool.certification.conflicts import Conflicts

WIDEST: Final = 12
"""Open inputs of a block that is made by merging, at most: its count is an exact search."""
STRATEGIES: Final = ("DSATUR", "largest_first", "smallest_last", "independent_set")
"""Orders in which networkx.greedy_color colours."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """Open inputs (positions, ascending), and a bound of how many of them one perturbation fools."""

    members: tuple[int, ...]
    bound: int


def partition(conflicts: Conflicts, given: Iterable[Sequence[int]]) -> tuple[Block, ...]:
    """Blocks that cover every open input, with a sum of bounds at most that of the blocks `given`.

    Args:
        conflicts: over all open inputs.
        given: disjoint, and together all open inputs.

    Raises: ValueError where `given` is no partition.
    """
    linked = {pair for old in conflicts.refuted for pair in combinations(sorted({member for member, _ in old}), 2)}
    start = [block(conflicts, members) for members in given]
    if sorted(member for one in start for member in one.members) != list(range(len(conflicts.rivals))):
        raise ValueError("the given blocks are no partition of the open inputs")
    covers = [[block(conflicts, clique) for clique in cover] for cover in _covers(conflicts)]
    candidates = [merged(conflicts, blocks, linked) for blocks in (start, *covers)]
    best = min(candidates, key=lambda blocks: (total(blocks), -len(blocks)))
    return tuple(sorted(best, key=lambda one: one.members))


def total(blocks: Iterable[Block]) -> int:
    """How many inputs one perturbation can fool in all, at most."""
    return sum(one.bound for one in blocks)


def block(conflicts: Conflicts, members: Iterable[int]) -> Block:
    """The block of these open inputs, with what the conflicts say about it."""
    chosen = tuple(sorted(members))
    return Block(members=chosen, bound=conflicts.within(chosen).largest().bound)


def merged(conflicts: Conflicts, blocks: Sequence[Block], linked: Set[tuple[int, int]]) -> list[Block]:
    """The blocks, those of them united whose union counts for less than they do by themselves.

    linked: pairs (i, j), i < j, of open inputs of one refuted combination; without any of them a union is no gain.
    """
    kept = list(blocks)
    vain: set[tuple[int, ...]] = set()
    number = 0
    while number < len(kept):
        for other in range(number):
            mine, theirs = kept[number].members, kept[other].members
            together = tuple(sorted((*mine, *theirs)))
            apart = not any((min(i, j), max(i, j)) in linked for i in mine for j in theirs)
            if apart or len(together) > WIDEST or together in vain:
                continue
            union = block(conflicts, together)
            if union.bound == kept[number].bound + kept[other].bound:
                vain.add(together)
            else:
                kept[other] = union
                del kept[number]
                number = min(number, other)
                break
        else:
            number += 1
    return kept


def exclusive(conflicts: Conflicts) -> set[tuple[int, int]]:
    """Pairs (i, j), i < j, of open inputs that are never fooled together, whatever their rivals."""
    free = [
        [(m, rival) for rival in rivals if frozenset([(m, rival)]) not in conflicts.refuted]
        for m, rivals in enumerate(conflicts.rivals)
    ]
    return {
        (i, j)
        for i, j in combinations(range(len(free)), 2)
        if all(frozenset([a, b]) in conflicts.refuted for a in free[i] for b in free[j])
    }


def _covers(conflicts: Conflicts) -> list[list[list[int]]]:
    """Covers of the open inputs by cliques of mutually exclusive ones."""
    pairs = exclusive(conflicts)
    together: networkx.Graph[int] = networkx.Graph()
    together.add_nodes_from(range(len(conflicts.rivals)))
    together.add_edges_from(p for p in combinations(range(len(conflicts.rivals)), 2) if p not in pairs)
    found = []
    for strategy in STRATEGIES:
        colours = networkx.greedy_color(together, strategy=strategy)
        cover: dict[int, list[int]] = {}
        for member, colour in colours.items():
            cover.setdefault(colour, []).append(member)
        found.append(list(cover.values()))
    return found
