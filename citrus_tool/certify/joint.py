"""Cross-execution proofs: that no one perturbation fools all inputs of a set.

For inputs 1..m with wrong labels c_1..c_m, a perturbation u that fools them all has margin_i(u) <= 0 for all i, so

    max over shares s >= 0, sum s = 1    min over |u| <= eps    sum_i s_i margin_i(x_i + u)  >  0

excludes it (RACoon, Banerjee et al. 2024, theorem 4.1). The inner minimum is bounded like a single margin: the
executions side by side are one system of open neurons over one shared u (`fold.beside`), and slopes, multipliers and
shares are ascended together; the search splits neurons of any execution (RABBit, Suresh et al. 2024, section 4.3).
Differs from the papers in: (1) sets of any size; (2) every combination of wrong labels has shares, slopes and a tree of
its own; (3) shares are part of every node's ascent; (4) claims are in float64 with outward errors, one backward pass
per execution.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Final

import torch
from torch import Tensor

from citrus_tool.bounds.fold import Fold, beside
from citrus_tool.bounds.linear import Planes
from citrus_tool.bounds.optimised import Duals, Instance, JointTargets, Schedule, least_sum, tuned_planes
from citrus_tool.certify.search import Problem
from citrus_tool.network import INPUT

JOINT_ROOT: Final = Schedule(steps=40)
"""Adam's steps on the whole box."""
SLACK: Final = 2.0**-15


@dataclass(frozen=True, kw_only=True)
class Member:
    """One input of a set: its execution over the box, the wrong labels that may win, and its guard."""

    instance: Instance
    labels: tuple[int, ...]
    guard: float


@dataclass(frozen=True, kw_only=True)
class JointProblem(Problem):
    """One target per combination of wrong labels: sum of share_i (margin_i - guard_i).

    members: M executions over the same box radius.  combinations: T tuples of M labels.
    """

    members: tuple[Member, ...]
    combinations: tuple[tuple[int, ...], ...]

    @cached_property
    def _system(self) -> Fold:
        return beside([member.instance.system for member in self.members])

    @cached_property
    def _labels(self) -> Tensor:
        return torch.tensor(self.combinations, device=self.members[0].instance.system.radius.device)

    @cached_property
    def _first(self) -> tuple[int, ...]:
        """(M + 1,) the members' first neurons in the joint system, and U."""
        return tuple(accumulate((member.instance.system.neurons for member in self.members), initial=0))

    @property
    def system(self) -> Fold:
        return self._system

    @property
    def count(self) -> int:
        return len(self.combinations)

    @property
    def goal(self) -> float:
        """What an ascent in float32 must reach before a claim is worth a try."""
        return SLACK * max(float(1 + member.instance.system.margins.offset.abs().amax()) for member in self.members)

    def targets(self, index: Tensor) -> JointTargets:
        hidden, inputs, offsets = [], [], []
        for number, member in enumerate(self.members):
            margins, classes = member.instance.system.margins, self._labels[index, number]
            hidden.append(margins.at_hidden.T[:, classes])
            inputs.append(margins.at_input.T[:, classes])
            offsets.append(margins.offset[classes] - member.guard)
        return JointTargets(
            at_hidden=torch.cat(hidden), at_input=torch.stack(inputs), offset=torch.stack(offsets), member=self._first
        )

    def start(self, count: int) -> Duals:
        plain = Duals.start(self.system, count)
        return replace(plain, share=plain.alpha.new_full((len(self.members), count), 1 / len(self.members)))

    def claim(self, index: Tensor, duals: Duals) -> Tensor:
        assert duals.share is not None
        parts: list[Planes] = []
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
            start, rows = member.instance.margins(self._labels[index, number])
            scaled = replace(rows, coefficient=rows.coefficient * share[:, None], norm=rows.norm * share * (1 + 2**-40))
            planes = tuned_planes(member.instance, member.instance.system, start, scaled, part)
            # the rows' two coefficients +-share, and share * guard, are exact up to one rounding each
            slack = share * (member.guard * (1 + 2**-40))
            parts.append(replace(planes, offset=planes.offset - slack))
        return least_sum(parts, self.members[0].instance.boxes[INPUT])

    def alone(self, number: int) -> JointProblem:
        """The problem of one combination."""
        return JointProblem(members=self.members, combinations=(self.combinations[number],))
