from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from citrus_tool.records import joined, select


@dataclass(frozen=True, kw_only=True)
class Pair:
    rows: Tensor
    flags: Tensor
    absent: Tensor | None
    name: str


def pair(count: int, name: str = "a") -> Pair:
    rows = torch.arange(2.0 * count).reshape(count, 2)
    return Pair(rows=rows, flags=torch.arange(count) % 2 == 0, absent=None, name=name)


def test_every_tensor_is_cut_and_the_rest_stays() -> None:
    for index in (torch.tensor([3, 1]), torch.tensor([False, True, False, True]), slice(1, 3)):
        some = select(pair(4), index)
        assert torch.equal(some.rows, pair(4).rows[index])
        assert torch.equal(some.flags, pair(4).flags[index])
        assert (some.absent, some.name) == (None, "a")
    whole = pair(4)
    last = select(Pair(rows=whole.rows.T, flags=whole.flags, absent=None, name="a"), torch.tensor([2, 2]), last=True)
    assert torch.equal(last.rows, whole.rows.T[:, [2, 2]])
    assert torch.equal(last.flags, whole.flags[[2, 2]])


def test_joined_undoes_selecting() -> None:
    both = joined([select(pair(5), slice(0, 2)), select(pair(5), slice(2, 5))])
    assert torch.equal(both.rows, pair(5).rows)
    assert torch.equal(both.flags, pair(5).flags)
    assert (both.absent, both.name) == (None, "a")
