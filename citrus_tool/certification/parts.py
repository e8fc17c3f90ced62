"""Parts of a box: columns of duals as a search keeps them one by one, and as a proof stores them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from citrus_tool.bounds.duals import GRID, Duals
from citrus_tool.bounds.fold import Fold


@dataclass(frozen=True, kw_only=True)
class PartDuals:
    """The duals of one part of the box, in the order of its S splits.

    Attributes:
        alpha: (U,) uint8, in units of 1 / GRID.
        split, side, beta: (S,) as a column of Duals, without the rows that hold no split.
        share: (M,) of M members; None for one input.
    """

    alpha: Tensor
    split: Tensor
    side: Tensor
    beta: Tensor
    share: Tensor | None

    @staticmethod
    def of(duals: Duals, columns: Iterable[int]) -> list[PartDuals]:
        """Those of some columns, in order."""
        alpha, given = (duals.alpha * GRID).round().to(torch.uint8), duals.side != 0
        return [
            PartDuals(
                alpha=alpha[:, column].clone(),
                split=duals.split[given[:, column], column],
                side=duals.side[given[:, column], column],
                beta=duals.beta[given[:, column], column],
                share=None if duals.share is None else duals.share[:, column],
            )
            for column in columns
        ]

    @staticmethod
    def stacked(parts: Sequence[PartDuals], system: Fold) -> Duals:
        """The inverse of `of`: the parts of a system as columns."""
        depth, absent = max(len(part.split) for part in parts), system.neurons
        shares = [part.share for part in parts if part.share is not None]
        return Duals(
            alpha=torch.stack([part.alpha for part in parts], dim=1).to(system.radius.dtype) / GRID,
            split=torch.stack([pad(part.split, (0, depth - len(part.split)), value=absent) for part in parts], dim=1),
            side=torch.stack([pad(part.side, (0, depth - len(part.side))) for part in parts], dim=1),
            beta=torch.stack([pad(part.beta, (0, depth - len(part.beta))) for part in parts], dim=1),
            share=None if not shares else torch.stack(shares, dim=1),
        )


@dataclass(frozen=True, kw_only=True)
class OpenPart:
    """A part that is open for one target.

    `candidates` (c,) are the neurons that promise most, none when there is nothing left to split; `weight` (c,) are the
    coefficients of their outputs.
    """

    target: int
    duals: PartDuals
    candidates: Tensor
    weight: Tensor


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """A closed part: the duals that prove its bound for one target."""

    target: int
    duals: PartDuals
    bound: float
