"""Best-first search over the parts of a box: margins of one input, or joint ones of several, bounded from below.

Wang et al. 2021, "Beta-CROWN", section 3.3, with filtered smart branching (De Palma et al. 2021, "Improved Branch and
Bound for Neural Network Verification via Lagrangian Decomposition", section 5) over the intercept score of BaBSR
(Bunel et al. 2020, "Branch and Bound for Piecewise Linear Neural Network Verification").
Differs from the papers in: (1) every target has a tree of its own, so that each splits on its own neurons; (2) the
bounds of hidden neurons stay those of the whole box; (3) a child starts from its parent's slopes and, where possible,
from multipliers that reproduce the parent's bound; (4) bounds that count are claimed in float64 with outward errors
(`claims.tuned_planes`); (5) a part with nothing left to split is closed by the multipliers of a linear program
(bounds/program.py) where the ascent does not close it.
"""

from __future__ import annotations

import heapq
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from citrus_tool.bounds.ascent import COLUMNS, Ascent, ascend, mean_points
from citrus_tool.bounds.claims import least_above, tuned_planes
from citrus_tool.bounds.duals import Duals, JointTargets, Targets, children
from citrus_tool.bounds.execution import FoldedExecution
from citrus_tool.bounds.fold import Fold
from citrus_tool.bounds.program import solve
from citrus_tool.bounds.workspace import Schedule
from citrus_tool.certification.parts import Leaf, OpenPart, PartDuals

CHILD: Final = Schedule(steps=10, alpha_rate=0.02, beta_rate=0.05, share_rate=0.02, decay=0.95)
"""Adam on a part of a box, which starts from its parent's duals: ten small steps, since these are nearly best."""
MEAN: Final = Schedule(steps=60, alpha_rate=0.02, beta_rate=0.04, share_rate=0.02, decay=0.97)
"""Adam for the points of `Search.near_optimal`: more steps, since mean points only come close to a minimum slowly."""
TRIAL: Final = Schedule(steps=0)
"""For a candidate to split on: no steps, its children are bounded with their parent's duals."""
LAST: Final = Schedule(steps=200)
"""Adam on a part on which no neuron that is left to split has a coefficient: long, for it is the last try but one."""
CANDIDATES: Final = 4
"""Neurons per part whose split is tried before one is chosen."""
MINOR: Final = 1e-3
"""What a neuron with a positive coefficient, whose line below is the loose one, counts for beside a negative one."""
CLOSED_ELSEWHERE: Final = 1e300
"""Stands for the bound of parts that were closed before a search was resumed."""
BETTER_HALF: Final = 0.3
"""Weight of the better child's bound in a candidate's score; the worse child's has weight 1."""


class SearchProblem(ABC):
    """T functionals over one system of open neurons, to be bounded from below on parts of the box."""

    @property
    @abstractmethod
    def system(self) -> Fold:
        """The folded system whose neurons are split."""

    @property
    @abstractmethod
    def count(self) -> int:
        """T."""

    @abstractmethod
    def targets(self, index: Tensor) -> Targets | JointTargets:
        """The functionals numbered `index` (D,), for the ascent."""

    @abstractmethod
    def start(self, count: int) -> Duals:
        """Duals on the whole box to ascend from."""

    @abstractmethod
    def claim(self, index: Tensor, duals: Duals) -> Tensor:
        """Bounds (D,) of the functionals numbered `index` on the parts of `duals`, in float64 with outward errors."""


@dataclass(frozen=True, kw_only=True)
class MarginProblem(SearchProblem):
    """Margins of one input over `classes` (T,), less <shift[t], u> where `shift` (T, *input_shape) is given."""

    execution: FoldedExecution
    classes: Tensor
    shift: Tensor | None = None

    @property
    def system(self) -> Fold:
        return self.execution.system

    @property
    def count(self) -> int:
        return len(self.classes)

    def targets(self, index: Tensor) -> Targets:
        targets = Targets.of(self.system.margins, self.classes[index])
        if self.shift is None:
            return targets
        shift = self.shift[index].flatten(1).to(self.system.radius.dtype) * self.system.radius
        return replace(targets, at_input=targets.at_input - shift.T)

    def start(self, count: int) -> Duals:
        return self.execution.start(self.system, count)

    def claim(self, index: Tensor, duals: Duals) -> Tensor:
        rows = self.execution.margins(self.classes[index])
        planes = tuned_planes(self.execution.relaxed, self.system, *rows, duals)
        return planes.lower if self.shift is None else least_above(planes, self.shift[index], self.execution.box)


Look = Callable[[Tensor], Collection[int]]
"""Judges minimising points v (d, D); returns targets whose search is pointless, since a point refutes them."""


Watch = Callable[[Tensor, Tensor], None]
"""Is shown the bounds (D,) and minimising points v (d, D) of parts that stay open."""


class Search:
    """The search for one problem; the open parts of all targets in one heap, the worst bound first.

    Attributes:
        guard: a part is closed once its claimed bound exceeds this.
        goal: what the ascent must reach before a claim is tried.
        leaves: the closed parts, if they are recorded.
        nodes: parts bounded so far.
    """

    def __init__(
        self,
        *,
        problem: SearchProblem,
        guard: float,
        goal: float,
        look: Look | None = None,
        watch: Watch | None = None,
        record: bool = False,
    ) -> None:
        self.problem, self.guard, self.goal = problem, guard, goal
        self.leaves: list[Leaf] | None = [] if record else None
        self._look, self._watch = look, watch
        self._heap: list[tuple[float, int, OpenPart]] = []
        self._pushed = 0
        self._stuck: list[OpenPart] = []  # nothing left to split, and not settled
        self._device = problem.system.radius.device
        self._closed = torch.full((problem.count,), math.inf, dtype=torch.float64, device=self._device)
        self._dropped: set[int] = set()
        self.nodes = 0

    @property
    def done(self) -> bool:
        """Nothing is left to split; parts that are not settled may be left, and their targets are not `proven`."""
        return not self._heap

    @property
    def gap(self) -> float:
        """How far the worst part is from being closed."""
        return self.guard - self._heap[0][0] if self._heap else math.inf

    def __len__(self) -> int:
        return len(self._heap) + len(self._stuck)

    def splits(self) -> Tensor:
        """(S,) the neurons that the open parts are split on, with repetition."""
        parts = [part for _, _, part in self._heap] + self._stuck
        return torch.cat([part.duals.split for part in parts] or [torch.empty(0, dtype=torch.long)])

    def proven(self) -> list[int]:
        """The targets of which every part is closed; none before `start`."""
        left = {part.target for _, _, part in self._heap} | {part.target for part in self._stuck} | self._dropped
        closed = torch.nonzero(self._closed < math.inf).flatten().tolist()
        return [target for target in closed if target not in left]

    def lower(self) -> Tensor:
        """(T,) claimed bounds of the targets over the whole box: the least of all their parts.

        -inf where dropped, and before `start`.
        """
        least = self._closed.clone()
        parts = [part for _, _, part in self._heap] + self._stuck
        for first in range(0, len(parts), COLUMNS):
            some = parts[first : first + COLUMNS]
            target = self._targets_of(some)
            least.scatter_reduce_(0, target, self.problem.claim(target, self._stacked(some)), "amin")
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

    def start(self, found: Ascent) -> None:
        """Starts from bounds of all targets on the whole box."""
        self._sort_out(found, torch.arange(self.problem.count, device=self._device))

    def open_duals(self) -> Duals | None:
        """The duals of the open parts (one target's), None where there are none."""
        parts = [part for _, _, part in self._heap] + self._stuck
        return self._stacked(parts) if parts else None

    def near_optimal(self, count: int) -> tuple[Tensor, Tensor]:
        """Near-optimal points v (d, P) of the relaxations of the worst parts, at most `count`, and their targets."""
        parts = [part for _, _, part in heapq.nsmallest(count, self._heap)]
        target = self._targets_of(parts).long()
        if not parts:
            return self.problem.system.radius.new_zeros(len(self.problem.system.radius), 0), target
        return mean_points(self.problem.system, self.problem.targets(target), self._stacked(parts), MEAN), target

    def start_from_parts(self, duals: Duals) -> None:
        """Starts from parts, all of target 0, that together with what is closed elsewhere cover the box."""
        count = duals.alpha.shape[1]
        self._closed[0] = min(float(self._closed[0]), CLOSED_ELSEWHERE)
        for some in torch.split(torch.arange(count, device=self._device), COLUMNS):
            target = torch.zeros_like(some)
            start = duals.columns(some)
            found = ascend(self.problem.system, self.problem.targets(target), start, CHILD, goal=self.goal)
            self.nodes += len(some)
            self._sort_out(found, target)

    def grow(self, nodes: int, deadline: float = math.inf) -> None:
        """Splits the worst parts until `nodes` have been bounded in all, or nothing is left."""
        while not self.done and self.nodes < nodes and time.monotonic() < deadline:
            count = min(len(self._heap), max(1, min(COLUMNS, nodes - self.nodes) // 2))
            parents = [heapq.heappop(self._heap)[2] for _ in range(count)]
            target, duals = self._targets_of(parents), self._stacked(parents)
            neuron, weight = self._choose(parents, target, duals)
            target = target.repeat_interleave(2)
            both = children(self.problem.system, duals, neuron, weight)
            found = ascend(self.problem.system, self.problem.targets(target), both, CHILD, goal=self.goal)
            self.nodes += len(target)
            self._sort_out(found, target)

    def _targets_of(self, parts: Sequence[OpenPart]) -> Tensor:
        return torch.tensor([part.target for part in parts], device=self._device)

    def _stacked(self, parts: Sequence[OpenPart]) -> Duals:
        return PartDuals.stacked([part.duals for part in parts], self.problem.system)

    def _choose(self, parents: Sequence[OpenPart], target: Tensor, duals: Duals) -> tuple[Tensor, Tensor]:
        """The neuron (P,) that each parent is split on, and the coefficient of its output there.

        Every candidate's two children are bounded once with their parent's duals; the best pair wins.
        """
        count = max(len(parent.candidates) for parent in parents)
        index = torch.arange(count, device=target.device)
        neuron = torch.stack([parent.candidates[index.clamp(max=len(parent.candidates) - 1)] for parent in parents])
        weight = torch.stack([parent.weight[index.clamp(max=len(parent.weight) - 1)] for parent in parents])
        if count > 1:
            wide = torch.arange(len(parents), device=target.device).repeat_interleave(count)
            trial = children(self.problem.system, duals.columns(wide), neuron.flatten(), weight.flatten())
            target = target[wide].repeat_interleave(2)
            bound = torch.cat(
                [
                    ascend(self.problem.system, self.problem.targets(target[some]), trial.columns(some), TRIAL).bound
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
            duals = found.duals.columns(ready).on_grid()
            bound[ready] = self.problem.claim(target[ready], duals)
            if self.leaves is not None:
                self.leaves += self._leaves(bound[ready], duals, target[ready])
        closed = torch.zeros_like(bound, dtype=torch.bool)
        closed[ready] = bound[ready] > self.guard  # nothing is closed by an ascent alone
        self._closed.scatter_reduce_(0, target[closed], bound[closed], "amin")
        left = torch.nonzero(~closed).flatten()
        if len(left):
            last = self._keep(bound, found, target, left)
            if last is not None:
                self._finish(target[last], found.duals.columns(last))
            if self._watch is not None:
                self._watch(bound[left], found.point[:, left])
            if self._look is not None:
                self.drop(self._look(found.point[:, left]))

    def _leaves(self, bound: Tensor, duals: Duals, target: Tensor) -> list[Leaf]:
        columns = torch.nonzero(bound > self.guard).flatten().tolist()
        return [
            Leaf(target=int(target[column]), duals=part, bound=float(bound[column]))
            for column, part in zip(columns, PartDuals.of(duals, columns), strict=True)
        ]

    def _finish(self, target: Tensor, duals: Duals) -> None:
        """A long ascent for parts without candidates; then what moves the neurons that are split comes next."""
        found = ascend(self.problem.system, self.problem.targets(target), duals, LAST, goal=self.goal)
        duals = found.duals.on_grid()
        bound = self.problem.claim(target, duals)
        closed = bound > self.guard
        self._closed.scatter_reduce_(0, target[closed], bound[closed], "amin")
        if self.leaves is not None:
            self.leaves += self._leaves(bound, duals, target)
        left = torch.nonzero(~closed).flatten()
        if len(left):
            self._keep(bound, found, target, left, last=True)

    def _keep(self, bound: Tensor, found: Ascent, target: Tensor, left: Tensor, *, last: bool = False) -> Tensor | None:
        """Puts the columns `left` on the heap, each with its candidates; returns those without, unless it is `last`."""
        exhausted: list[int] = []
        duals, weight = found.duals.columns(left), found.weight[:, left]
        promise = self.problem.system.upper_offset * torch.where(weight < 0, -weight, MINOR * weight)
        absent = torch.zeros_like(promise[:1])
        promise = torch.cat([promise, absent]).scatter_(0, duals.split, 0.0)[:-1]
        score, best = promise.topk(min(CANDIDATES, len(promise)), dim=0)
        weight = weight.gather(0, best)
        kept = PartDuals.of(duals, range(len(left)))
        for column, (number, value) in enumerate(zip(target[left].tolist(), bound[left].tolist(), strict=True)):
            promising = score[:, column] > 0
            part = OpenPart(
                target=number,
                duals=kept[column],
                candidates=best[promising, column],
                weight=weight[promising, column],
            )
            if not len(part.candidates) and not last:
                exhausted.append(int(left[column]))
                continue
            if not len(part.candidates):
                part = replace(
                    part,
                    candidates=(moving := self._moving(part.duals.split)),
                    weight=moving.new_zeros(len(moving)).to(part.weight),
                )
            if not len(part.candidates):
                self._last(part)
            elif number not in self._dropped:
                self._pushed += 1
                heapq.heappush(self._heap, (value, self._pushed, part))
        return torch.tensor(exhausted, device=target.device) if exhausted else None

    def _last(self, part: OpenPart) -> None:
        """Closes a part with nothing left to split by a linear program, or has the program's best point judged.

        The program's multipliers and shares are claimed like those of an ascent. A part that is not closed stays open;
        where the guard is infinite, so that none can be closed, nothing is solved.
        """
        target = torch.tensor([part.target], device=self._device)
        if math.isfinite(self.guard) and part.target not in self._dropped:
            duals = self._stacked([part])
            found = solve(self.problem.system, self.problem.targets(target), duals)
            if found is not None:
                share = None if found.share is None else found.share[:, None]
                duals = replace(duals, beta=found.beta[:, None], share=share).on_grid()
                bound = self.problem.claim(target, duals)
                if bool(bound > self.guard):
                    self._closed.scatter_reduce_(0, target, bound, "amin")
                    if self.leaves is not None:
                        self.leaves += self._leaves(bound, duals, target)
                    return
                if found.point is not None and self._watch is not None:
                    self._watch(bound, found.point[:, None])
                if found.point is not None and self._look is not None:
                    self.drop(self._look(found.point[:, None]))
        self._stuck.append(part)

    def _moving(self, split: Tensor) -> Tensor:
        """The unsplit neurons whose relaxations leave the inputs of the neurons in `split` the most room.

        On a part where every coefficient vanishes (all neurons of the last stage are off, say) the bound can only rise
        by showing that the given signs contradict each other.
        """
        system = self.problem.system
        pull = torch.zeros_like(system.upper_offset[:, 0])
        for stage in system.stages:
            here = split[(split >= stage.start) & (split < stage.stop)] - stage.start
            pull[stage.earlier] += stage.inputs.at_hidden[here].abs().sum(0)
        score = pull * system.upper_offset[:, 0]
        score[split] = 0.0
        best = score.topk(min(CANDIDATES, len(score)))
        return best.indices[best.values > 0]
