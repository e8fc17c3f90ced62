"""Proves that a question has no unsafe point: CROWN, alpha-CROWN, branch and bound on the formula's layers.

The rows of the formula are bounded first; those that are positive over the whole box drop out of it. What is left
becomes functionals behind the network (queries/formula.py), all of which have to be positive; the per-input engine of
certification/search.py proves these. Networks whose neurons it does not split (sigmoid, tanh, max pooling) have
the slopes of their relaxations optimised (queries/slopes.py), and are then split at the input
(queries/input_splitting.py).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from citrus_tool.bounds.ascent import ROOT
from citrus_tool.bounds.crown import margin_planes, relax
from citrus_tool.bounds.execution import FoldedExecution
from citrus_tool.bounds.fold import foldable
from citrus_tool.bounds.linear import RelaxedNetwork
from citrus_tool.bounds.rounding import enclosures, exact_products, outward_margins
from citrus_tool.certification.branch import SLACK
from citrus_tool.certification.search import MarginProblem, Search
from citrus_tool.network import Network
from citrus_tool.queries.formula import with_rows, with_targets
from citrus_tool.queries.input_splitting import Bisection
from citrus_tool.queries.question import Question
from citrus_tool.queries.slopes import SlopeAscent

Log = Callable[[str], None]
Judge = Callable[[Tensor], bool]
"""Takes points z (n, *input_shape); True once one of them is a confirmed witness."""

SLICE: Final = 2048
"""Parts of the box that are bounded between two looks at the clock: full batches, and time limits kept."""
REPORT: Final = 10.0
"""Seconds between two progress lines: often enough to see that it lives."""
TURN: Final = 2.0
"""Seconds that input splitting and branch and bound work in turn, as one of the two often ends at once."""
QUICK: Final = 1.0
"""Seconds of the search before hidden bounds are optimised, which pays only where the plain bounds do not suffice."""
BRANCH_FACTOR: Final = 3.0
"""Seconds of a branch's search, in units of the seconds that optimising its hidden bounds took."""
SHORTEST: Final = 0.2
"""Least seconds of a branch's search, so that a small network's branches are searched at all."""


class Prover:
    """The proof of one question, stage by stage.

    Attributes:
        patience: seconds that the main search has for itself.
        guard: what a row must exceed to count as refuted.
        formula: what is left of the question's formula.
        proven: no point of the box is unsafe.
        stuck: this engine has nothing left to try.
        witness: `judge` has confirmed a point.
    """

    def __init__(self, question: Question, judge: Judge, log: Log, *, patience: float) -> None:
        self.question, self.formula = question, question.formula
        self.proven = question.empty or question.formula.refuted
        self.stuck = not question.formula.clauses
        self.witness = False
        self.patience = patience
        self._judge, self._log = judge, log
        self._main: _Branch | None = None
        self._branches: dict[int, list[_Branch]] = {}
        self._seconds = [0.0, 0.0]  # spent on the main search, on branches
        self._execution: FoldedExecution | None = None
        self._slopes: SlopeAscent | None = None
        self._parts: Bisection | None = None
        self._classes = torch.empty(0, dtype=torch.long)
        self._tight = False
        self._reported = time.monotonic()
        self.guard = allowance(question)

    @property
    def done(self) -> bool:
        """Nothing is left to do."""
        return self.proven or self.stuck or self.witness

    def screen(self) -> None:
        """IBP and CROWN on the rows."""
        if self.done:
            return
        numbers = sorted({row for clause in self.formula.clauses for part in clause for row in part})
        network = with_rows(self.question.network, self.formula, numbers)
        with torch.no_grad(), exact_products():
            bounded = self._bounded(network)
            lower = bounded.lower
            self._drop([numbers[place] for place in torch.nonzero(lower > self.guard).flatten().tolist()])
            self._log(f"CROWN: {int((lower <= self.guard).sum())} of {len(numbers)} rows open")
            if self.proven:
                return
            simple = len(self.formula.clauses) == 1 and all(len(part) == 1 for part in self.formula.clauses[0])
            if simple:
                place = {row: number for number, row in enumerate(numbers)}
                self._classes = torch.tensor([1 + place[row] for (row,) in self.formula.clauses[0]])
            else:
                bounded = self._bounded(with_targets(self.question.network, self.formula))
                self._classes = 1 + torch.nonzero(~(bounded.lower > self.guard)).flatten()
                if not len(self._classes):
                    self.proven = True
                    return
            if foldable(network):
                self._execution = FoldedExecution.of(bounded.relaxed, 0, 0)
            else:
                self._slopes = SlopeAscent(bounded.relaxed.network, bounded.relaxed.boxes, self._classes, self.guard)

    def root(self) -> None:
        """alpha-CROWN on the whole box, with CROWN's hidden bounds, then with optimised ones."""
        if self.done or self._execution is None:
            return
        with torch.no_grad(), exact_products():
            self._main = self._planted(self._execution, self._classes, depth=0, seconds=0.0)
            self._log(f"alpha-CROWN: {self._status()}")

    def grow(self, deadline: float) -> None:
        """Branch and bound until `deadline`, or until it is settled.

        The main search splits the whole box and keeps its hidden bounds. From `patience` on, every target that it has
        not settled has a second line of attack, which takes half of the time: branches, parts of the box with optimised
        hidden bounds, each with a search of its own that makes way for two branches once it has taken a few times the
        seconds that its hidden bounds took.
        """
        with torch.no_grad(), exact_products():
            while not self.done and time.monotonic() < deadline:
                if self._slopes is not None:
                    self._grow_parts(self._slopes, deadline)
                    continue
                assert self._main is not None
                start = time.monotonic()
                until = min(deadline, start + TURN)
                if not self._tight and self._seconds[0] >= QUICK:
                    self._tighten(self._main)
                elif self._main.search.done or self._seconds[0] > max(self.patience, self._seconds[1]):
                    self._grow_branch(until)
                    self._seconds[1] += time.monotonic() - start
                else:
                    self._main.search.grow(self._main.search.nodes + SLICE, until)
                    self._seconds[0] += time.monotonic() - start
                self._settle()
                self._report()

    def _grow_parts(self, slopes: SlopeAscent, deadline: float) -> None:
        """Optimised slopes on the whole box, then parts of the box, for the targets that these leave open."""
        if self._parts is not None:
            self._parts.grow(min(deadline, self._reported + REPORT))
            self.proven, self.stuck = self._parts.proven and not self.witness, self._parts.stuck
            if time.monotonic() >= self._reported + REPORT:
                self._reported = time.monotonic()
                self._log(f"input splitting: {self._parts.parts} parts, worst bound {self._parts.worst:.4g}")
            return
        slopes.grow(deadline)
        if slopes.done:
            left = self._classes[~(slopes.lower > self.guard)]
            self._log(f"optimised slopes: {len(left)} of {len(self._classes)} targets open")
            self.proven = not len(left)
            self._parts = Bisection(slopes.network, self.question.box, left, self.guard, self._seen)
            self._reported = time.monotonic()

    def _settle(self) -> None:
        """Notes which targets are proven, by either line."""
        main = self._main
        assert main is not None
        settled = {number for number, branches in self._branches.items() if not branches}
        settled.update(int(main.classes[number]) for number in main.search.proven())
        for number in settled:
            self._branches[number] = []
        main.search.drop([place for place, number in enumerate(main.classes.tolist()) if number in settled])
        self.proven = not self.witness and settled.issuperset(main.classes.tolist())

    def _tighten(self, main: _Branch) -> None:
        """Starts the main search again with optimised hidden bounds, for the targets that are open."""
        self._tight = True
        start = time.monotonic()
        proven = set(main.search.proven())
        left = [number for number in range(len(main.classes)) if number not in proven]
        again = self._planted(main.execution.tightened(ROOT), main.classes[left], depth=0, seconds=0.0)
        if again is None:
            self.proven = True
            return
        self._main = replace(again, seconds=BRANCH_FACTOR * (time.monotonic() - start))
        self._log(f"optimised hidden bounds: {self._status()}")

    def _grow_branch(self, until: float) -> None:
        """Works on the last branch of the first target that is open."""
        main = self._main
        assert main is not None
        for number in main.classes.tolist():
            branches = self._branches.setdefault(number, [replace(main, classes=torch.tensor([number]), seconds=0.0)])
            if branches:
                break
        else:
            return
        branch = branches.pop()
        start = time.monotonic()
        if branch.search is not main.search:
            branch.search.grow(branch.search.nodes + SLICE, min(until, start + branch.seconds))
            branch = replace(branch, seconds=branch.seconds - (time.monotonic() - start))
            if branch.search.proven():
                return
            if branch.seconds > 0 and not branch.search.done:
                branches.append(branch)
                return
        neuron = branch.neuron()
        if neuron is None:
            self.stuck = self.stuck or branch.search.done
            branches.append(replace(branch, seconds=math.inf))  # nothing to gain from new hidden bounds
            return
        start = time.monotonic()
        parts = branch.execution.split(neuron, ROOT)
        seconds = max(SHORTEST, BRANCH_FACTOR * (time.monotonic() - start) / 2)
        found = [self._planted(part, branch.classes, depth=branch.depth + 1, seconds=seconds) for part in parts]
        branches.extend(part for part in found if part is not None)

    def _planted(self, execution: FoldedExecution, classes: Tensor, *, depth: int, seconds: float) -> _Branch | None:
        """alpha-CROWN on a part of the box, and a search over the targets that it leaves open; None: there is none."""
        planes, found = execution.root(classes, ROOT)
        left = torch.nonzero(~(planes.lower > self.guard)).flatten()
        if not len(left):
            self.proven = self.proven or depth == 0
            return None
        if len(left) < len(classes):
            classes = classes[left]
            found = execution.root(classes, ROOT)[1]
        size = float(1 + execution.system.margins.offset.abs().amax())
        goal = self.guard + SLACK * size
        margins = MarginProblem(execution=execution, classes=classes)
        search = Search(problem=margins, guard=self.guard, goal=goal, look=self._look)
        search.start(found)
        weight = (found.weight.abs() * execution.system.upper_offset).sum(1)
        return _Branch(execution=execution, classes=classes, search=search, depth=depth, weight=weight, seconds=seconds)

    def _status(self) -> str:
        if self._main is None:
            return "nothing open"
        system = self._main.execution.system
        return f"{len(self._main.classes)} targets open, {system.neurons} open neurons"

    def _report(self) -> None:
        if time.monotonic() < self._reported + REPORT or self._main is None:
            return
        self._reported = time.monotonic()
        search = self._main.search
        text = f"branch and bound: {search.nodes} parts, worst bound {-search.gap:.4g}"
        stack = next((branches for branches in self._branches.values() if branches), [])
        if stack:
            text += f"; {len(stack)} branches open, the last at depth {stack[-1].depth}"
        self._log(text)

    def _look(self, point: Tensor) -> list[int]:
        radius, centre = self.question.box.radius, self.question.box.centre
        z = centre + point.T.reshape(-1, *centre.shape[1:]).double() * radius
        return list(range(len(self._classes))) if self._seen(z) else []

    def _seen(self, z: Tensor) -> bool:
        """Whether a witness is known, these points included."""
        self.witness = self.witness or self._judge(z)
        return self.witness

    def _drop(self, rows: list[int]) -> None:
        self.formula = self.formula.without(rows)
        self.proven = self.formula.refuted

    def _bounded(self, network: Network) -> _Bounded:
        label = torch.zeros(1, dtype=torch.long)
        relaxed = relax(network, self.question.box)
        interval = outward_margins(network, relaxed.boxes, relaxed.file_errors, label)
        return _Bounded(relaxed=relaxed, lower=margin_planes(relaxed, label, interval).lower[0, 1:])


@dataclass(frozen=True, kw_only=True)
class _Branch:
    """A part of the box, the targets that are open on it, and the search over its parts.

    `weight` (U,): what each neuron's relaxation costs at the root. `seconds`: what is left of the search's time.
    """

    execution: FoldedExecution
    classes: Tensor
    search: Search
    depth: int
    weight: Tensor
    seconds: float

    def neuron(self) -> int | None:
        """The neuron to split the branch on: of those before the last stage the one that the search has split most.

        Where it has split none, the one whose relaxation costs most; None where there is none left. Splitting the last
        stage changes no hidden bound.
        """
        system = self.execution.system
        before = system.stages[-1].start if system.stages else 0
        given = self.execution.start(system, 1).split[:, 0]
        weight = self.weight[:before].clone()
        weight[given[given < before]] = 0.0
        count = torch.bincount(self.search.splits(), minlength=system.neurons + 1)[:before]
        count[given[given < before]] = 0
        if before and int(count.max()):
            return int(count.argmax())
        return int(weight.argmax()) if before and float(weight.max()) > 0 else None


@dataclass(frozen=True, kw_only=True)
class _Bounded:
    """A network over the box, as `relax` reads it, and CROWN's lower bounds of its margins but the first."""

    relaxed: RelaxedNetwork
    lower: Tensor


def allowance(question: Question) -> float:
    """What a row must exceed to count as refuted: the rounding of exact coefficients to float64."""
    formula = question.formula
    if not bool(formula.error.any()):
        return 0.0
    with torch.no_grad(), exact_products():
        reach = enclosures(question.network, question.box).boxes[question.network.output_name]
        largest = torch.cat([(box.centre.abs() + box.radius).flatten() for box in (reach, question.box)])
        return 2 * float((formula.error @ largest).amax())
