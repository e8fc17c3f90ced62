"""The largest set of a group's inputs that one perturbation fools: a search over sets, one input added at a time.

Sets that an attack fools are closed under taking subsets, as the frequent sets of Agrawal and Srikant, "Fast algorithms
for mining association rules" (VLDB 1994, Apriori). Differs from it in: (1) depth first: the largest set known is
extended first, by every input that might join; (2) whether a set falls is judged by an attack (sets.py), so a set that
resisted is only believed not to: those that came close are tried again, from other starts; (3) a budget of sets, not
an exhaustive search.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from citrus_tool.attacks.sets import Descent, around, attack_sets
from citrus_tool.network import Network
from citrus_tool.threat import Threat

DECISIVE: Final = 1e-4
"""A set falls when all its margins are this far below 0 (in clean margins): that survives a float32 replay."""
CLOSE: Final = 0.2
"""A set whose largest margin came below this is worth another try."""
TRIES: Final = 5
"""Attacks on one set, at most."""
AGAIN: Final = 8
"""Sets that are tried again together."""
ROWS: Final = 512
"""Images in one forward pass."""

Members = frozenset[int]


@dataclass(frozen=True, kw_only=True)
class Found:
    """The u (C, H, W) with the lowest largest margin found for a set, and that margin in clean margins."""

    u: Tensor
    worst: float

    @property
    def fallen(self) -> bool:
        """Whether u fools the whole set, with a margin to spare."""
        return self.worst <= -DECISIVE


@dataclass(kw_only=True)
class Growth:
    """The search in one group.

    Attributes:
        alone: input -> its own perturbation and margin; those that fall alone are the inputs of the search.
        budget: sets that may still be attacked.
        found: everything tried, with the closest u.
    """

    alone: Mapping[int, Found]
    budget: int
    found: dict[Members, Found] = field(default_factory=dict)
    _tries: dict[Members, int] = field(default_factory=dict)
    _resisted: list[Members] = field(default_factory=list)
    _heap: list[tuple[int, float, list[int], Members]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for member, found in self.alone.items():
            self.note(frozenset([member]), found)

    @property
    def best(self) -> Members:
        """The largest set that falls, and among those the one that falls most clearly."""
        fallen = [
            (len(members), -found.worst, sorted(members)) for members, found in self.found.items() if found.fallen
        ]
        return frozenset(max(fallen)[2]) if fallen else frozenset()

    def note(self, members: Members, found: Found) -> None:
        """Takes in what an attack on a set found."""
        known = self.found.get(members)
        if known is not None and known.worst <= found.worst:
            return
        self.found[members] = found
        if found.fallen:
            self._resisted = [other for other in self._resisted if not other <= members]
            heapq.heappush(self._heap, (-len(members), found.worst, sorted(members), members))
        elif known is None:
            self._resisted.append(members)

    def proposals(self, generator: torch.Generator, threat: Threat) -> list[tuple[Members, Tensor]]:
        """The sets to attack next, each with a start (C, H, W) within the threat; none when the budget is
        spent or nothing is left to try.
        """
        most = len(self.best)
        while self._heap and self.budget > 0:
            members = heapq.heappop(self._heap)[3]
            joining = [other for other in self.alone if self._may_join(members, other)]
            untried = [other for other in joining if members | {other} not in self.found]
            if untried and len(members) + len(joining) > most:
                return self._spend([(members | {other}, self._between(members, other)) for other in untried])
        close = [
            (-len(members), self._tries.get(members, 1), self.found[members].worst, sorted(members))
            for members in self._resisted
            if self.found[members].worst < CLOSE
            and self._tries.get(members, 1) < TRIES
            and len(members) + sum(self._may_join(members, other) for other in self.alone) > most
        ]
        again = [frozenset(entry[3]) for entry in heapq.nsmallest(AGAIN, close)]
        return self._spend([(members, self._elsewhere(members, generator, threat)) for members in again])

    def _spend(self, proposals: list[tuple[Members, Tensor]]) -> list[tuple[Members, Tensor]]:
        proposals = proposals[: self.budget]
        self.budget -= len(proposals)
        for members, _ in proposals:
            self._tries[members] = self._tries.get(members, 0) + 1
        return proposals

    def _may_join(self, members: Members, other: int) -> bool:
        """No set that resisted, except `members` itself, lies within `members` and `other`."""
        both = members | {other}
        return other not in members and not any(bad <= both and bad != members for bad in self._resisted)

    def _between(self, members: Members, other: int) -> Tensor:
        """A start between the u of a set and that of one more input."""
        return (len(members) * self.found[members].u + self.alone[other].u) / (len(members) + 1)

    def _elsewhere(self, members: Members, generator: torch.Generator, threat: Threat) -> Tensor:
        """A start for another try: a random mean of the inputs' own perturbations, with random corners in it."""
        weight = torch.rand(len(members), generator=generator)
        own = torch.stack([self.alone[member].u for member in sorted(members)])
        mean = torch.einsum("s,schw->chw", (weight / weight.sum()).to(own), own)
        return around(mean, 2, threat, generator)[0]


def grow(
    network: Network,
    images: Float[Tensor, "g k C H W"],
    labels: Int[Tensor, "g k"],
    unit: Float[Tensor, "g k"],
    searches: Sequence[Growth],
    threat: Threat,
    *,
    steps: int,
    generator: torch.Generator,
) -> None:
    """Runs the searches of g groups side by side until each has ended; unit: clean margins."""
    going = list(range(len(searches)))
    while going:
        work: list[tuple[int, Members, Tensor]] = []
        still = []
        for group in going:
            proposals = searches[group].proposals(generator, threat)
            work += [(group, members, start) for members, start in proposals]
            if proposals:
                still.append(group)
        going = still
        for part in _parts(work):
            rows = [(group, member) for group, members, _ in part for member in sorted(members)]
            of_group, member = (torch.tensor(column, device=images.device) for column in zip(*rows, strict=True))
            sizes = torch.tensor([len(members) for _, members, _ in part], device=images.device)
            of_set = torch.arange(len(part), device=images.device).repeat_interleave(sizes)
            u, margin = attack_sets(
                network,
                images[of_group, member],
                labels[of_group, member],
                of_set,
                torch.stack([start for _, _, start in part]),
                threat,
                Descent(steps=steps),
                unit=unit[of_group, member],
            )
            worst = torch.full_like(u[:, 0, 0, 0], -torch.inf).scatter_reduce(0, of_set, margin, "amax")
            for (group, members, _), one, value in zip(part, u, worst.tolist(), strict=True):
                searches[group].note(members, Found(u=one, worst=value))


def _parts(work: Sequence[tuple[int, Members, Tensor]]) -> Iterable[list[tuple[int, Members, Tensor]]]:
    """`work` cut into runs of at most ROWS images."""
    part: list[tuple[int, Members, Tensor]] = []
    rows = 0
    for entry in work:
        if part and rows + len(entry[1]) > ROWS:
            yield part
            part, rows = [], 0
        part.append(entry)
        rows += len(entry[1])
    if part:
        yield part
