"""The leaves of a proof: parts of a box, each with the duals that bound it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from citrus_tool.checker.graph import Floats, Index
from citrus_tool.checker.proof_format import Splits


@dataclass(frozen=True, kw_only=True)
class Leaves:
    """L leaves: owner (L,) their combination; label, share (L, M); alpha (L, V); `row` (S,) the leaf of each split."""

    owner: Index
    label: Index
    alpha: NDArray[np.uint8]
    share: Floats
    row: Index
    split: Index
    side: Floats
    beta: Floats

    @staticmethod
    def joined(parts: Sequence[Leaves]) -> Leaves:
        """The leaves of all parts, part by part."""
        starts = np.cumsum([0, *(len(part.owner) for part in parts)])
        names = ("owner", "label", "alpha", "share", "split", "side", "beta")
        row = np.concatenate([part.row + start for part, start in zip(parts, starts[:-1], strict=True)])
        return Leaves(row=row, **{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})

    def pick(self, first: int, last: int) -> Leaves:
        """The leaves `first` to `last`, with their splits."""
        here = slice(*np.searchsorted(self.row, (first, last)))
        return Leaves(
            owner=self.owner[first:last],
            label=self.label[first:last],
            alpha=self.alpha[first:last],
            share=self.share[first:last],
            row=self.row[here] - first,
            split=self.split[here],
            side=self.side[here],
            beta=self.beta[here],
        )


def covers(paths: Sequence[Splits]) -> bool:
    """Whether the parts of a box, each given by (neuron, sign) in the order of splits, are the leaves of one tree."""
    todo = [(0, list(paths))]
    while todo:
        depth, some = todo.pop()
        if len(some) == 1 and len(some[0]) == depth:
            continue
        if not some or any(len(path) == depth for path in some) or len({path[depth][0] for path in some}) != 1:
            return False
        todo += [(depth + 1, [path for path in some if path[depth][1] == side]) for side in (1, -1)]
    return True
