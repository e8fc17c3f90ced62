"""The counting argument: how many inputs can be fooled at once, given refuted combinations.

A combination is a set of atoms (input, rival) that no one perturbation makes happen together. If u fools the
inputs S, each with a rival, the chosen atoms contain no refuted combination; so the largest choice of atoms, at most
one for each input, without a refuted combination bounds |S| for every u. This is the combinatorial Benders master of
the group MILP (Codato and Fischetti 2006), small enough for an exact search: no solver has to be trusted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain, combinations
from typing import Final

Atom = tuple[int, int]
"""(position of an input among the open ones, rival): the event that the input is fooled with this rival."""
Combination = tuple[Atom, ...]
"""Atoms of different inputs, in order of the inputs."""

STEPS: Final = 200_000
"""Choices that the search tries before it settles for a weaker bound."""
FEW: Final = 4
"""Atoms of a combination whose subsets are looked up one by one."""


@dataclass(frozen=True, kw_only=True)
class Largest:
    """The largest consistent choice found, and the bound on its size; they meet unless the search was cut short."""

    choice: Combination
    bound: int


@dataclass(kw_only=True)
class Conflicts:
    """Refuted combinations over the atoms of a group's open inputs.

    rivals: for each open input the rivals that are not excluded by themselves.
    """

    rivals: Sequence[Sequence[int]]
    refuted: set[frozenset[Atom]] = field(default_factory=set)

    def add(self, combination: Iterable[Atom]) -> None:
        """Notes a refuted combination; those that contain it are dropped."""
        new = frozenset(combination)
        if not self.covers(new):
            self.refuted = {old for old in self.refuted if not new <= old} | {new}

    def covers(self, combination: Iterable[Atom]) -> bool:
        """Whether the combination is refuted by what is known."""
        given = frozenset(combination)
        if len(given) <= FEW:
            subsets = chain.from_iterable(combinations(given, size) for size in range(1, len(given) + 1))
            return any(frozenset(some) in self.refuted for some in subsets)
        return any(old <= given for old in self.refuted)

    def within(self, members: Sequence[int]) -> Conflicts:
        """What is known about these open inputs alone, which are numbered anew in their order."""
        number = {member: new for new, member in enumerate(members)}
        return Conflicts(
            rivals=[self.rivals[member] for member in members],
            refuted={
                frozenset((number[member], rival) for member, rival in old)
                for old in self.refuted
                if all(member in number for member, _ in old)
            },
        )

    def excluded(self) -> list[int]:
        """The inputs of which every rival is refuted by itself."""
        return [
            member
            for member, rivals in enumerate(self.rivals)
            if all(frozenset([(member, rival)]) in self.refuted for rival in rivals)
        ]

    def atoms(self, member: int) -> list[Atom]:
        """The input's atoms worth choosing: not refuted by themselves, and none that is never better than another."""
        free = [(member, rival) for rival in self.rivals[member] if frozenset([(member, rival)]) not in self.refuted]
        of = {atom: {old - {atom} for old in self.refuted if atom in old} for atom in free}
        kept: list[Atom] = []
        for place, atom in enumerate(free):
            others = kept + free[place + 1 :]
            # another is at least as free: each of its combinations is implied by one of the atom's
            if not any(all(any(mine <= theirs for mine in of[atom]) for theirs in of[other]) for other in others):
                kept.append(atom)
        return kept

    def largest(self, steps: int = STEPS) -> Largest:
        """The largest choice of atoms without a refuted combination, by depth-first search with the obvious bound."""
        choices = [atoms for atoms in (self.atoms(member) for member in range(len(self.rivals))) if atoms]
        choices.sort(key=len)
        containing: dict[Atom, list[frozenset[Atom]]] = {}
        for old in self.refuted:
            for atom in old:
                containing.setdefault(atom, []).append(old)
        best: list[Atom] = []
        chosen: list[Atom] = []
        taken: set[Atom] = set()
        left = steps
        cut = 0  # what a branch that was not searched might have reached

        def allowed(atom: Atom) -> bool:
            return not any(old <= taken | {atom} for old in containing.get(atom, []))

        def descend(depth: int) -> None:
            nonlocal best, left, cut
            open_ = [index for index in range(depth, len(choices)) if any(allowed(atom) for atom in choices[index])]
            if len(chosen) > len(best):
                best = list(chosen)
            if len(chosen) + len(open_) <= len(best):
                return
            if left <= 0:
                cut = max(cut, len(chosen) + len(open_))
                return
            left -= 1
            first = open_[0]
            for atom in choices[first]:
                if allowed(atom):
                    chosen.append(atom)
                    taken.add(atom)
                    descend(first + 1)
                    chosen.pop()
                    taken.discard(atom)
            descend(first + 1)

        descend(0)
        return Largest(choice=tuple(sorted(best)), bound=max(cut, len(best)))
