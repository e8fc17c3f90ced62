"""The counting argument: how many inputs can still be fooled together once combinations are refuted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from citrus_tool.checker.combinations import Combinations
from citrus_tool.checker.group import Group
from citrus_tool.checker.proof_format import Atom, require

STEPS: Final = 10_000_000
"""Choices that the argument may try, so that a check ends; a count that needs more is refused."""


def certified(group: Group) -> tuple[int, int]:
    """How many inputs the proof of a group certifies, as it claims, and how many leaves were bounded."""
    facts = group.facts
    left = [group.individual(position) for position in range(len(facts["kinds"]))]
    combinations = Combinations(group)
    refuted = combinations.refuted()
    held, claim = sum(labels is not None for labels in left), facts["fooled"]
    options = [[(place, label) for label in sorted(labels or ())] for place, labels in enumerate(left)]
    require(
        not choosable(options, refuted, claim + 1),
        group.where,
        f"its combinations allow that more than the claimed {claim} inputs are fooled together",
    )
    require(facts["certified"] == held - claim, group.where, "its certified count does not follow")
    return held - claim, combinations.leaves


def choosable(options: Sequence[Sequence[Atom]], refuted: Iterable[frozenset[Atom]], wanted: int) -> bool:
    """Whether `wanted` atoms, at most one of each option, can be chosen so that they contain no refuted combination.

    Raises CheckFailedError when that takes more than STEPS choices.
    """
    others: dict[Atom, list[frozenset[Atom]]] = {}
    for old in refuted:
        for atom in old:
            others.setdefault(atom, []).append(old - {atom})
    containing = {atom: others.get(atom, []) for option in options for atom in option}

    def freer(one: Atom, other: Atom) -> bool:
        """Whether `one` can always take the place of `other`."""
        return all(any(theirs <= mine for theirs in containing[other]) for mine in containing[one])

    useful = []
    for option in options:
        kept: list[Atom] = []
        for atom in option:
            if not any(freer(old, atom) for old in kept):
                kept = [old for old in kept if not freer(atom, old)] + [atom]
        useful.append(kept)

    def allowed(atom: Atom, chosen: frozenset[Atom]) -> bool:
        return not any(rest <= chosen for rest in containing[atom])

    todo: list[tuple[list[list[Atom]], frozenset[Atom]]] = [(useful, frozenset())]
    steps = 0
    while todo:
        steps += 1
        require(steps <= STEPS, "the counting argument", f"takes more than {STEPS} steps")
        left, chosen = todo.pop()
        left = [open_ for option in left if (open_ := [atom for atom in option if allowed(atom, chosen)])]
        if len(chosen) >= wanted:
            return True
        if len(chosen) + len(left) >= wanted:
            first, *rest = sorted(left, key=len)
            todo += [(rest, chosen), *((rest, chosen | {atom}) for atom in reversed(first))]
    return False
