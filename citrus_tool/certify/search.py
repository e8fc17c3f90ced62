"""Best-first search over the parts of one input's box: margins, or margins over a plane, bounded from below.

Wang et al. 2021, "Beta-CROWN", section 3.3, with filtered smart branching (De Palma et al. 2021, "Improved Branch and
Bound for Neural Network Verification via Lagrangian Decomposition", section 5) over the intercept score of BaBSR
(Bunel et al. 2020, "Branch and Bound for Piecewise Linear Neural Network Verification").
Differs from the papers in: (1) every target has a tree of its own, so that each splits on its own neurons; (2) the
bounds of hidden neurons stay those of the whole box; (3) a child starts from its parent's slopes and, where possible,
from multipliers that reproduce the parent's bound; (4) bounds that count are claimed in float64 with outward errors
(`optimised.tuned_planes`).
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import pad

from citrus_tool.bounds.optimised import (
    COLUMNS,
    Ascent,
    Duals,
    Instance,
    Schedule,
    Targets,
    ascend,
    children,
    least_above,
    tuned_planes,
)
from citrus_tool.network import INPUT

CHILD: Final = Schedule(steps=10)
"""Adam's steps on a part of a box."""
TRIAL: Final = Schedule(steps=0)
"""The same for a candidate."""
LAST: Final = Schedule(steps=200)
"""The same for a part on which no neuron that is left to split has a coefficient."""
CANDIDATES: Final = 4
"""Neurons per part whose split is tried before one is chosen."""
MINOR: Final = 1e-3
"""What a neuron with a positive coefficient, whose line below is the loose one, counts for beside a negative one."""
BETTER_HALF: Final = 0.3
"""Weight of the better child's bound in a candidate's score; the worse child's has weight 1."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of the box that is open for one target.

    alpha (U,) float16, split, side, beta (k,) as in Duals; `candidates` (c,) the neurons that promise most, none when
    there is nothing left to split, `weight` (c,) the coefficients of their outputs.
    """

    target: int
    alpha: Tensor
    split: Tensor
    side: Tensor
    beta: Tensor
    candidates: Tensor
    weight: Tensor


Look = Callable[[Tensor], Collection[int]]
"""Judges minimising points v (d, D); returns targets whose search is pointless, since a point refutes them."""


class Search:
    """The search for one input; the open parts of all targets in one heap, the worst bound first.

    Target t is the margin over `classes[t]`, less <shift[t], u> where a shift is given.

    Attributes:
        guard: a part is closed once its claimed bound exceeds this.
        goal: what the ascent must reach before a claim is tried.
        nodes: parts bounded so far.
    """

    def __init__(
        self,
        *,
        instance: Instance,
        classes: Tensor,
        guard: float,
        goal: float,
        shift: Tensor | None = None,
        look: Look | None = None,
    ) -> None:
        self.instance, self.classes, self.guard, self.goal, self.shift = instance, classes, guard, goal, shift
        self._look = look
        self._heap: list[tuple[float, int, Part]] = []
        self._pushed = 0
        self._stuck: list[Part] = []  # nothing left to split
        self._closed = torch.full((len(classes),), math.inf, dtype=torch.float64, device=classes.device)
        self._dropped: set[int] = set()
        self.nodes = 0

    @property
    def done(self) -> bool:
        """Nothing is left to split."""
        return not self._heap

    @property
    def gap(self) -> float:
        """How far the worst part is from being closed."""
        return self.guard - self._heap[0][0] if self._heap else math.inf

    def splits(self) -> Tensor:
        """The neurons that the open parts are split on, with repetition."""
        parts = [part for _, _, part in self._heap] + self._stuck
        return torch.cat([part.split for part in parts] or [torch.empty(0, dtype=torch.long)])

    def proven(self) -> list[int]:
        """The targets of which every part is closed; none before `plant`."""
        left = {part.target for _, _, part in self._heap} | {part.target for part in self._stuck} | self._dropped
        closed = torch.nonzero(self._closed < math.inf).flatten().tolist()
        return [target for target in closed if target not in left]

    def lower(self) -> Tensor:
        """(T,) claimed bounds of the targets over the whole box: the least of all their parts.

        -inf where dropped, and before `plant`.
        """
        least = self._closed.clone()
        parts = [part for _, _, part in self._heap] + self._stuck
        for first in range(0, len(parts), COLUMNS):
            some = parts[first : first + COLUMNS]
            target = self._targets_of(some)
            least.scatter_reduce_(0, target, self._claim(target, self._stacked(some)), "amin")
        least[list(self._dropped)] = -math.inf
        return torch.where(least < math.inf, least, -math.inf)

    def drop(self, targets: Collection[int]) -> None:
        """Gives targets up."""
        if self._dropped.issuperset(targets):
            return
        self._dropped.update(targets)
        self._heap = [entry for entry in self._heap if entry[2].target not in self._dropped]
        heapq.heapify(self._heap)
        self._stuck = [part for part in self._stuck if part.target not in self._dropped]

    def plant(self, found: Ascent) -> None:
        """Starts from bounds of all targets on the whole box."""
        self._sort_out(found, torch.arange(len(self.classes), device=self.classes.device))

    def grow(self, nodes: int, deadline: float = math.inf) -> None:
        """Splits the worst parts until `nodes` have been bounded in all, or nothing is left."""
        while not self.done and self.nodes < nodes and time.monotonic() < deadline:
            count = min(len(self._heap), max(1, min(COLUMNS, nodes - self.nodes) // 2))
            parents = [heapq.heappop(self._heap)[2] for _ in range(count)]
            target, duals = self._targets_of(parents), self._stacked(parents)
            neuron, weight = self._choose(parents, target, duals)
            target = target.repeat_interleave(2)
            both = children(self.instance.system, duals, neuron, weight)
            found = ascend(self.instance.system, self.targets(target), both, CHILD, goal=self.goal)
            self.nodes += len(target)
            self._sort_out(found, target)

    def targets(self, index: Tensor) -> Targets:
        """The targets numbered `index` as functionals of the folded system."""
        system = self.instance.system
        targets = Targets.of(system.margins, self.classes[index])
        if self.shift is None:
            return targets
        shift = self.shift[index].flatten(1).to(system.radius.dtype) * system.radius
        return replace(targets, at_input=targets.at_input - shift.T)

    def _targets_of(self, parts: Sequence[Part]) -> Tensor:
        return torch.tensor([part.target for part in parts], device=self.classes.device)

    def _stacked(self, parts: Sequence[Part]) -> Duals:
        depth = max(len(part.split) for part in parts)
        absent = self.instance.system.neurons
        return Duals(
            alpha=torch.stack([part.alpha for part in parts], dim=1).to(self.instance.system.radius.dtype),
            split=torch.stack([pad(part.split, (0, depth - len(part.split)), value=absent) for part in parts], dim=1),
            side=torch.stack([pad(part.side, (0, depth - len(part.side))) for part in parts], dim=1),
            beta=torch.stack([pad(part.beta, (0, depth - len(part.beta))) for part in parts], dim=1),
        )

    def _claim(self, target: Tensor, duals: Duals) -> Tensor:
        rows = self.instance.margins(self.classes[target])
        planes = tuned_planes(self.instance, self.instance.system, *rows, duals)
        return (
            planes.lower if self.shift is None else least_above(planes, self.shift[target], self.instance.boxes[INPUT])
        )

    def _choose(self, parents: Sequence[Part], target: Tensor, duals: Duals) -> tuple[Tensor, Tensor]:
        """The neuron (P,) that each parent is split on, and the coefficient of its output there.

        Every candidate's two children are bounded once with their parent's duals; the best pair wins.
        """
        count = max(len(parent.candidates) for parent in parents)
        index = torch.arange(count, device=target.device)
        neuron = torch.stack([parent.candidates[index.clamp(max=len(parent.candidates) - 1)] for parent in parents])
        weight = torch.stack([parent.weight[index.clamp(max=len(parent.weight) - 1)] for parent in parents])
        if count > 1:
            wide = torch.arange(len(parents), device=target.device).repeat_interleave(count)
            trial = children(self.instance.system, duals.columns(wide), neuron.flatten(), weight.flatten())
            target = target[wide].repeat_interleave(2)
            bound = torch.cat(
                [
                    ascend(self.instance.system, self.targets(target[some]), trial.columns(some), TRIAL).bound
                    for some in torch.split(torch.arange(len(target), device=target.device), COLUMNS)
                ]
            )
            pair = bound.clamp(max=self.goal).reshape(len(parents), count, 2)
            best = (pair.amin(2) + BETTER_HALF * pair.amax(2)).argmax(1, keepdim=True)
            neuron, weight = neuron.gather(1, best), weight.gather(1, best)
        return neuron[:, 0], weight[:, 0]

    def _sort_out(self, found: Ascent, target: Tensor) -> None:
        """Closes the parts that the ascent has proven, has the minimising points judged, keeps the rest."""
        bound = found.bound.double()
        ready = torch.nonzero(bound > self.goal).flatten()
        if len(ready):
            bound[ready] = self._claim(target[ready], found.duals.columns(ready))
        closed = bound > self.guard
        self._closed.scatter_reduce_(0, target[closed], bound[closed], "amin")
        left = torch.nonzero(~closed).flatten()
        if len(left):
            last = self._keep(bound, found, target, left)
            if last is not None:
                self._finish(target[last], found.duals.columns(last))
            if self._look is not None:
                self.drop(self._look(found.point[:, left]))

    def _finish(self, target: Tensor, duals: Duals) -> None:
        """A long ascent for parts without candidates; then what moves the neurons that are split comes next."""
        found = ascend(self.instance.system, self.targets(target), duals, LAST, goal=self.goal)
        bound = self._claim(target, found.duals)
        closed = bound > self.guard
        self._closed.scatter_reduce_(0, target[closed], bound[closed], "amin")
        left = torch.nonzero(~closed).flatten()
        if len(left):
            self._keep(bound, found, target, left, last=True)

    def _keep(self, bound: Tensor, found: Ascent, target: Tensor, left: Tensor, *, last: bool = False) -> Tensor | None:
        """Puts the columns `left` on the heap, each with its candidates; returns those without, unless it is `last`."""
        exhausted: list[int] = []
        duals, weight = found.duals.columns(left), found.weight[:, left]
        promise = self.instance.system.upper_offset * torch.where(weight < 0, -weight, MINOR * weight)
        absent = torch.zeros_like(promise[:1])
        promise = torch.cat([promise, absent]).scatter_(0, duals.split, 0.0)[:-1]
        score, best = promise.topk(min(CANDIDATES, len(promise)), dim=0)
        weight = weight.gather(0, best)
        alpha = duals.alpha.to(torch.float16)
        for column, (number, value) in enumerate(zip(target[left].tolist(), bound[left].tolist(), strict=True)):
            given = duals.side[:, column] != 0
            promising = score[:, column] > 0
            part = Part(
                target=number,
                alpha=alpha[:, column].clone(),
                split=duals.split[given, column],
                side=duals.side[given, column],
                beta=duals.beta[given, column],
                candidates=best[promising, column],
                weight=weight[promising, column],
            )
            if not len(part.candidates) and not last:
                exhausted.append(int(left[column]))
                continue
            if not len(part.candidates):
                part = replace(
                    part,
                    candidates=(moving := self._moving(part.split)),
                    weight=moving.new_zeros(len(moving)).to(part.weight),
                )
            if not len(part.candidates):
                self._stuck.append(part)
            elif number not in self._dropped:
                self._pushed += 1
                heapq.heappush(self._heap, (value, self._pushed, part))
        return torch.tensor(exhausted, device=target.device) if exhausted else None

    def _moving(self, split: Tensor) -> Tensor:
        """The unsplit neurons whose relaxations leave the inputs of the neurons in `split` the most room.

        On a part where every coefficient vanishes (all neurons of the last stage are off, say) the bound can only rise
        by showing that the given signs contradict each other.
        """
        system = self.instance.system
        pull = torch.zeros_like(system.upper_offset[:, 0])
        for stage in system.stages:
            here = split[(split >= stage.start) & (split < stage.stop)] - stage.start
            pull[: stage.start] += stage.inputs.at_hidden[here].abs().sum(0)
        score = pull * system.upper_offset[:, 0]
        score[split] = 0.0
        best = score.topk(min(CANDIDATES, len(score)))
        return best.indices[best.values > 0]
