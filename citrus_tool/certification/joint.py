"""Cross-execution proofs: that no one perturbation fools all inputs of a set.

For inputs 1..m with rivals c_1..c_m, a perturbation u that fools them all has margin_i(u) <= 0 for all i, so

    max over shares s >= 0, sum s = 1    min over |u| <= eps    sum_i s_i margin_i(x_i + u)  >  0

excludes it (RACoon, Banerjee et al. 2024, theorem 4.1). The inner minimum is bounded like a single margin: the
executions side by side are one system of open neurons over one shared u (`fold.beside`), and slopes, multipliers and
shares are ascended together; the search splits neurons of any execution (RABBit, Suresh et al. 2024, section 4.3).
Differs from the papers in: (1) sets of any size; (2) every combination of rivals has shares, slopes and a tree of
its own; (3) shares are part of every node's ascent; (4) claims are in float64 with outward errors, one backward pass
per execution; (5) neurons of the first layer are relaxed once for all executions (`fold.Twins`), by the exact minimum
of what they contribute, where DiffPoly (RaVeN, Banerjee et al. 2024) bounds differences of values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Final

import torch
from torch import Tensor

from citrus_tool.bounds.claims import Apart, least_sum, planes_apart
from citrus_tool.bounds.duals import Duals, JointTargets
from citrus_tool.bounds.execution import FoldedExecution
from citrus_tool.bounds.fold import Fold, beside, foldable_nodes
from citrus_tool.bounds.linear import LinearBounds
from citrus_tool.bounds.rounding import OWN, SAFETY, gamma, widen
from citrus_tool.bounds.workspace import Schedule
from citrus_tool.certification.search import CLOSED_ELSEWHERE, SearchProblem

JOINT_ROOT: Final = Schedule(steps=40)
"""Adam's steps on the whole box."""
SLACK: Final = 2.0**-15
"""What the ascent must exceed 0 by before its bound is claimed, in units of the largest |margin offset|: some hundred
float32 roundings, so that hardly a claim (float64) fails that an ascent (float32) has promised."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """One input of a set: its execution over the box and the rivals that may win."""

    execution: FoldedExecution
    rivals: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class _TwinRanges:
    """The twins' inputs in float64 with outward errors: in real arithmetic z_m = t + b_m for one t in [low, high].

    Attributes:
        row, place, floor: as in the fold; (M, C), (U + 1,), and (C,) the slope left of 0.
        has: (M, C) whether the member has the neuron.
        b: (M, C), computed.  slack: (M, C) how far from the exact ones they are at most.
        low, high: (C,).
    """

    row: Tensor
    place: Tensor
    floor: Tensor
    has: Tensor
    b: Tensor
    slack: Tensor
    low: Tensor
    high: Tensor

    @staticmethod
    def of(system: Fold, members: Sequence[Member]) -> _TwinRanges:
        """Of a system that has twins: those of `members`' first stages."""
        assert system.twins is not None
        row, place = system.twins.row, system.twins.place
        has = row < system.neurons
        count = row.shape[1]
        b, slack = (system.radius.new_zeros(row.shape, dtype=torch.float64) for _ in range(2))
        low, high = b.new_full((count,), -math.inf), b.new_full((count,), math.inf)
        floor = torch.cat([system.floor, system.floor.new_zeros(1)])[row].amax(0).double()
        first = 0
        for number, member in enumerate(members):
            stage = member.execution.system.stages[0]
            entry, here = stage.entry[row[number][has[number]] - first], has[number]
            first += member.execution.system.neurons
            origin, box = member.execution.origin, widen(member.execution.relaxed.boxes[stage.source])
            lower, upper = origin.lower.flatten()[entry], origin.upper.flatten()[entry]
            b[number, here] = middle = (lower + upper) / 2
            slack[number, here] = torch.maximum(upper - middle, middle - lower) * (1 + 2**-40)
            low[here] = torch.maximum(low[here], box.lower.flatten()[entry] - upper)
            high[here] = torch.minimum(high[here], box.upper.flatten()[entry] - lower)
        error = 2.0**-50 * (low.abs() + high.abs() + b.abs().amax(0))
        return _TwinRanges(
            row=row, place=place, floor=floor, has=has, b=b, slack=slack, low=low - error, high=high + error
        )

    def least(self, left: Sequence[Apart], duals: Duals) -> tuple[Tensor, Tensor]:
        """(R,) lower bounds of what `left` by the members' planes, on the parts of R columns; and which are empty."""
        rows, count = duals.split.shape[1], len(self.low)
        shape = (len(left), rows, count)
        weight, slope = self.low.new_zeros(shape), self.low.new_zeros(shape)
        for number, apart in enumerate(left):
            weight[number][:, self.has[number]] = apart.weight
            slope[number][:, self.has[number]] = apart.slope
        low, high = self._range(duals)
        b = self.b[:, None]
        best = weight.new_full((rows, count), math.inf)
        for t in (low, high, *(-one for one in b)):
            z = torch.maximum(torch.minimum(t, high), low) + b
            value = (weight * torch.maximum(z, self.floor * z) - slope * z).sum(0)
            best = torch.minimum(best, value)
        size = weight.abs() + slope.abs()
        reach = torch.maximum(low.abs(), high.abs()) + self.b.abs().amax(0)
        rounding = SAFETY * gamma(4 * len(left) + OWN, size.dtype)
        error = (size * self.slack[:, None]).sum(0) + rounding * size.sum(0) * reach
        total = (best - error).sum(1)
        error = SAFETY * gamma(count + OWN, size.dtype) * (best.abs() + error).sum(1)
        empty = (low > high).any(1)
        return torch.where(empty, 0.0, total - error), empty

    def _range(self, duals: Duals) -> tuple[Tensor, Tensor]:
        """(R, C) the ends of t on the parts of the box where the given signs hold, outward."""
        spare = torch.zeros_like(self.low[:1])
        b, slack = (self._by_neuron(values) for values in (self.b, self.slack))
        split, side = duals.split.T, duals.side.T
        place, outward = self.place[split], slack[split] * (1 + 2**-40) + 2.0**-50 * b[split].abs()
        wide = (len(split), -1)
        low = torch.cat([self.low, spare]).expand(*wide).clone()
        high = torch.cat([self.high, spare]).expand(*wide).clone()
        low.scatter_reduce_(1, place, torch.where(side > 0, -b[split] - outward, -math.inf), "amax")
        high.scatter_reduce_(1, place, torch.where(side < 0, -b[split] + outward, math.inf), "amin")
        return low[:, :-1], high[:, :-1]

    def _by_neuron(self, values: Tensor) -> Tensor:
        """(U + 1,) of values (M, C), 0 where a neuron is no twin."""
        blank = torch.zeros(len(self.place), dtype=values.dtype, device=values.device)
        return blank.index_put_((self.row[self.has],), values[self.has])


def _constant(values: Tensor, like: LinearBounds) -> LinearBounds:
    """LinearBounds without a slope."""
    return LinearBounds(coefficient=torch.zeros_like(like.coefficient), offset=values, lower=values)


@dataclass(frozen=True, kw_only=True)
class JointProblem(SearchProblem):
    """One target per combination of rivals: sum of share_i margin_i.

    members: M executions over the same box radius.  combinations: T tuples of M rivals.
    """

    members: tuple[Member, ...]
    combinations: tuple[tuple[int, ...], ...]

    @cached_property
    def _system(self) -> Fold:
        node = foldable_nodes(self.members[0].execution.relaxed.network)[0].name
        return beside([member.execution.system for member in self.members], node)

    @cached_property
    def _rivals(self) -> Tensor:
        return torch.tensor(self.combinations, device=self.members[0].execution.system.radius.device)

    @cached_property
    def _first(self) -> tuple[int, ...]:
        """(M + 1,) the members' first neurons in the joint system, and U."""
        return tuple(accumulate((member.execution.system.neurons for member in self.members), initial=0))

    @property
    def system(self) -> Fold:
        return self._system

    @property
    def count(self) -> int:
        return len(self.combinations)

    @property
    def goal(self) -> float:
        """What an ascent in float32 must reach before a claim is worth a try."""
        return SLACK * max(float(1 + member.execution.system.margins.offset.abs().amax()) for member in self.members)

    def targets(self, index: Tensor) -> JointTargets:
        hidden, inputs, offsets = [], [], []
        for number, member in enumerate(self.members):
            margins, classes = member.execution.system.margins, self._rivals[index, number]
            hidden.append(margins.at_hidden.T[:, classes])
            inputs.append(margins.at_input.T[:, classes])
            offsets.append(margins.offset[classes])
        return JointTargets(
            at_hidden=torch.cat(hidden), at_input=torch.stack(inputs), offset=torch.stack(offsets), member=self._first
        )

    def start(self, count: int) -> Duals:
        plain = Duals.start(self.system, count)
        return replace(plain, share=plain.alpha.new_full((len(self.members), count), 1 / len(self.members)))

    def claim(self, index: Tensor, duals: Duals) -> Tensor:
        assert duals.share is not None
        twins, parts, left = self.system.twins, list[LinearBounds](), list[Apart]()
        for number, member in enumerate(self.members):
            first, last = self._first[number], self._first[number + 1]
            own = (duals.split >= first) & (duals.split < last)
            part = Duals(
                alpha=duals.alpha[first:last],
                split=torch.where(own, duals.split - first, last - first),
                side=torch.where(own, duals.side, 0.0),
                beta=torch.where(own, duals.beta, 0.0),
            )
            share = duals.share[number].double()
            start, rows = member.execution.margins(self._rivals[index, number])
            scaled = replace(rows, coefficient=rows.coefficient * share[:, None], norm=rows.norm * share * (1 + 2**-40))
            has = None if twins is None else twins.row[number][twins.row[number] < self.system.neurons] - first
            planes, apart = planes_apart(member.execution.relaxed, member.execution.system, start, scaled, part, has)
            parts.append(planes)
            left.append(apart)
        box = self.members[0].execution.box
        if twins is None:
            return least_sum(parts, box)
        above, empty = self._twins.least(left, duals)
        found = least_sum([*parts, _constant(above, parts[0])], box)
        return torch.where(empty, CLOSED_ELSEWHERE, found)

    @cached_property
    def _twins(self) -> _TwinRanges:
        """What claims need of the twins."""
        assert self.system.twins is not None
        return _TwinRanges.of(self.system, self.members)

    def alone(self, number: int) -> JointProblem:
        """The problem of one combination."""
        return JointProblem(members=self.members, combinations=(self.combinations[number],))
