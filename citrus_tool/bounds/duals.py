"""Slopes, multipliers and shares of lower bounds, and the functionals that they bound, one column each.

Xu et al. 2021, "Fast and Complete" (alpha-CROWN): the slopes of the lines below open ReLUs are free, each functional
has its own. Wang et al. 2021, "Beta-CROWN" (theorem 3.1): on the part of a box where some neurons' inputs have a given
sign, each sign enters as a Lagrange multiplier beta >= 0 at the neuron's input.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from citrus_tool.bounds.fold import Fold, Functionals
from citrus_tool.records import select

GRID = 255
"""Steps from slope 0 to slope 1: a slope that is kept, or claimed with, is a multiple of 1 / GRID and fits one byte."""


@dataclass(frozen=True, kw_only=True)
class Duals:
    """Slopes and multipliers of D functionals on D parts of a box; one column each.

    Attributes:
        alpha: (U, D) slopes of the lines below the open neurons.
        split: (K, D) the neurons whose sign is given, U where a column has fewer than K.
        side: (K, D) +1: input >= 0, -1: input <= 0, 0: none.
        beta: (K, D) multipliers >= 0.
        share: (M, D) weights >= 0 of the members of joint functionals (JointTargets), which sum to 1; None: no members.
    """

    alpha: Tensor
    split: Tensor
    side: Tensor
    beta: Tensor
    share: Tensor | None = None

    @staticmethod
    def start(system: Fold, count: int) -> Duals:
        """CROWN's slopes on the whole box, for `count` functionals."""
        alpha = system.lower_slope.expand(-1, count)
        return Duals(
            alpha=alpha,
            split=torch.empty(0, count, dtype=torch.long, device=alpha.device),
            side=alpha.new_empty(0, count),
            beta=alpha.new_empty(0, count),
        )

    def on_grid(self) -> Duals:
        """The same with slopes that a proof can store, in float64."""
        return replace(self, alpha=(self.alpha.double() * GRID).round() / GRID)

    def columns(self, index: Tensor | slice) -> Duals:
        """Some of the columns, or one twice."""
        return select(self, index, last=True)


def children(system: Fold, duals: Duals, neuron: Tensor, weight: Tensor) -> Duals:
    """Both sides (2 P columns, >= 0 first) of P parents, each split on its neuron.

    `neuron` (P,); `weight` (P,): how much its output counts.

    Where the weight w is positive the multipliers reproduce the parent's bound: the part >= 0 starts from
    beta = w (1 - alpha), the part <= 0 from w (alpha - floor). Elsewhere they start from 0.
    """
    alpha = duals.alpha.gather(0, neuron[None])[0]
    positive = weight.clamp(min=0)
    beta = torch.stack([positive * (1 - alpha), positive * (alpha - system.floor[neuron])], dim=1).flatten()
    both = duals.columns(torch.arange(len(neuron), device=neuron.device).repeat_interleave(2))
    side = torch.ones_like(beta)
    side[1::2] = -1.0
    return replace(
        both,
        split=torch.cat([both.split, neuron.repeat_interleave(2)[None]]),
        side=torch.cat([both.side, side[None]]),
        beta=torch.cat([both.beta, beta[None]]),
    )


@dataclass(frozen=True, kw_only=True)
class Targets:
    """D functionals of (v, h) to bound from below: columns `at_hidden` (U, D), `at_input` (d, D), `offset` (D,)."""

    at_hidden: Tensor
    at_input: Tensor
    offset: Tensor

    @staticmethod
    def of(functionals: Functionals, index: Tensor) -> Targets:
        """The functionals numbered `index`."""
        return Targets(
            at_hidden=functionals.at_hidden.T[:, index].contiguous(),
            at_input=functionals.at_input.T[:, index].contiguous(),
            offset=functionals.offset[index],
        )

    @staticmethod
    def both_sides(functionals: Functionals) -> Targets:
        """Every functional, then the negative of every one: lower and upper bounds."""
        both = Functionals(
            at_hidden=torch.cat([functionals.at_hidden, -functionals.at_hidden]),
            at_input=torch.cat([functionals.at_input, -functionals.at_input]),
            offset=torch.cat([functionals.offset, -functionals.offset]),
        )
        return Targets.of(both, torch.arange(len(both.offset), device=both.offset.device))

    def columns(self, index: slice) -> Targets:
        """Some of the functionals."""
        return select(self, index, last=True)

    def mix(self, share: Tensor | None, at_hidden: Tensor, at_input: Tensor) -> Tensor:
        """Writes the coefficients into the given buffers; returns the offsets (D,), a new tensor."""
        at_hidden.copy_(self.at_hidden)
        at_input.copy_(self.at_input)
        return self.offset.clone()


@dataclass(frozen=True, kw_only=True)
class JointTargets:
    """D functionals sum_m share[m] T[m], T[m] a functional of member m of a system of systems (fold.beside).

    Attributes:
        at_hidden: (U, D) all members' coefficients at their own neurons.
        at_input: (M, d, D).  offset: (M, D).
        member: (M + 1,) the members' first neurons, and U.
    """

    at_hidden: Tensor
    at_input: Tensor
    offset: Tensor
    member: tuple[int, ...]

    def mix(self, share: Tensor | None, at_hidden: Tensor, at_input: Tensor) -> Tensor:
        """As in Targets, for these shares."""
        assert share is not None
        for number, (first, last) in enumerate(pairwise(self.member)):
            torch.mul(self.at_hidden[first:last], share[number], out=at_hidden[first:last])
            if number:
                at_input.addcmul_(self.at_input[number], share[number])
            else:
                torch.mul(self.at_input[0], share[0], out=at_input)
        return (share * self.offset).sum(0)

    def values(self, point: Tensor, hidden: Tensor) -> Tensor:
        """(M, D) every member's functional at inputs (d, D) and outputs of the neurons (U, D)."""
        values = self.offset + (self.at_input * point).sum(1)
        for number, (first, last) in enumerate(pairwise(self.member)):
            values[number] += (self.at_hidden[first:last] * hidden[first:last]).sum(0)
        return values
