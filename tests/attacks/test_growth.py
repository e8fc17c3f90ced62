from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import pytest
import torch

from citrus_tool.attacks import growth
from citrus_tool.attacks.growth import Found, Growth, Members
from citrus_tool.threat import Threat

U = torch.zeros(1, 1, 1)


def search(inputs: int, budget: int, attack: Callable[[Members], float]) -> tuple[Growth, int]:
    """Runs a search whose attacks are answered by `attack` (largest margin); the number of sets attacked."""
    found = Growth(alone={i: Found(u=U, worst=-1.0 - i) for i in range(inputs)}, budget=budget)
    generator, attacked = torch.Generator().manual_seed(0), 0
    while proposals := found.proposals(generator, Threat(eps=1.0)):
        for members, _ in proposals:
            attacked += 1
            found.note(members, Found(u=U, worst=attack(members)))
    return found, attacked


@pytest.mark.parametrize("seed", range(20))
def test_finds_the_largest_set_of_random_families(seed: int) -> None:
    """Families closed under subsets, an attack that is never wrong: the search ends with a largest set."""
    generator = torch.Generator().manual_seed(seed)
    maximal = [frozenset(torch.randperm(8, generator=generator)[: int(size)].tolist()) for size in (2, 3, 3, 4, 5)]

    def attack(members: Members) -> float:
        return -1.0 if len(members) == 1 or any(members <= one for one in maximal) else 1.0

    found, attacked = search(8, 500, attack)
    every = [frozenset(some) for size in range(1, 9) for some in combinations(range(8), size)]
    assert len(found.best) == max(len(some) for some in every if attack(some) < 0) == 5
    assert attack(found.best) < 0
    assert attacked < len(every)


def test_budget_is_kept() -> None:
    found, attacked = search(10, 17, lambda members: -1.0)
    assert attacked == 17
    assert len(found.best) > 2


def test_sets_that_came_close_are_tried_again_and_hopeless_ones_are_not() -> None:
    tries: dict[Members, int] = {}

    def attack(members: Members) -> float:
        tries[members] = tries.get(members, 0) + 1
        if members == {0, 1}:
            return -1.0 if tries[members] == 3 else 0.05
        return 0.9

    found, _ = search(3, 100, attack)
    assert found.best == {0, 1}
    assert tries == {frozenset({0, 1}): 3, frozenset({0, 2}): 1, frozenset({1, 2}): 1}
    tries.clear()
    search(2, 100, lambda members: tries.update({members: tries.get(members, 0) + 1}) or 0.05)
    assert tries == {frozenset({0, 1}): growth.TRIES}


def test_supersets_of_a_set_that_resisted_are_left_out() -> None:
    seen: list[Members] = []

    def attack(members: Members) -> float:
        seen.append(members)
        return 1.0 if members >= {0, 1} else -1.0

    found, _ = search(4, 100, attack)
    assert len(found.best) == 3
    assert frozenset({0, 1}) in seen
    assert not any(members > {0, 1} for members in seen[seen.index(frozenset({0, 1})) + 1 :])


def test_nothing_decisive_nothing_found() -> None:
    found = Growth(alone={0: Found(u=U, worst=-1e-6)}, budget=5)
    assert found.best == frozenset()
