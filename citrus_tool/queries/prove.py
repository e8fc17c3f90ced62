"""Proves that a problem has no unsafe point: CROWN, alpha-CROWN, branch and bound on the formula's layers.

The rows of the formula are bounded first; those that are positive over the whole box drop out of it. What is left
becomes functionals behind the network (queries/formula.py), all of which have to be positive; the per-input engine of
certify/search.py proves these. Networks that it does not split are split at the input (queries/bisect.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from citrus_tool.bounds.crown import margin_planes, relax
from citrus_tool.bounds.fold import foldable
from citrus_tool.bounds.linear import Reading
from citrus_tool.bounds.optimised import ROOT, Instance
from citrus_tool.bounds.relaxation import Relaxation
from citrus_tool.bounds.rounding import OUTWARD_INTERVAL, exact_products, outward_margins
from citrus_tool.certify.branch import SLACK
from citrus_tool.certify.screen import GUARD
from citrus_tool.certify.search import Search
from citrus_tool.network import Network, walk
from citrus_tool.queries.formula import with_rows, with_targets
from citrus_tool.queries.problem import Problem
from citrus_tool.threat import Box

Log = Callable[[str], None]
Judge = Callable[[Tensor], bool]
"""Takes points z (n, *input_shape); True once one of them is a confirmed witness."""

SLICE: Final = 2048
"""Parts of the box that are bounded between two looks at the clock."""
REPORT: Final = 10.0
"""Seconds between two progress lines."""


class Prover:
    """The proof of one problem, stage by stage.

    Attributes:
        guard: what a row must exceed to count as refuted.
        formula: what is left of the problem's formula.
        proven: no point of the box is unsafe.
        stuck: this engine has nothing left to try.
        witness: `judge` has confirmed a point.
    """

    def __init__(self, problem: Problem, judge: Judge, log: Log) -> None:
        self.problem, self.formula = problem, problem.formula
        self.proven = problem.empty or problem.formula.refuted
        self.stuck = not problem.formula.clauses
        self.witness = False
        self._judge, self._log = judge, log
        self._search: Search | None = None
        self._instance: Instance | None = None
        self._classes = torch.empty(0, dtype=torch.long)
        self._tight = False
        self._reported = time.monotonic()
        self.guard = allowance(problem)

    @property
    def done(self) -> bool:
        """Nothing is left to do."""
        return self.proven or self.stuck or self.witness

    def screen(self) -> None:
        """IBP and CROWN on the rows."""
        if self.done:
            return
        numbers = sorted({row for clause in self.formula.clauses for part in clause for row in part})
        network = with_rows(self.problem.network, self.formula, numbers)
        with torch.no_grad(), exact_products():
            bounded = self._bounded(network)
            lower = bounded.lower
            self._drop([numbers[place] for place in torch.nonzero(lower > self.guard).flatten().tolist()])
            self._log(f"CROWN: {int((lower <= self.guard).sum())} of {len(numbers)} rows open")
            if self.proven:
                return
            if not foldable(network):
                self.stuck = True
                return
            simple = len(self.formula.clauses) == 1 and all(len(part) == 1 for part in self.formula.clauses[0])
            if simple:
                place = {row: number for number, row in enumerate(numbers)}
                self._classes = torch.tensor([1 + place[row] for (row,) in self.formula.clauses[0]])
            else:
                bounded = self._bounded(with_targets(self.problem.network, self.formula))
                self._classes = 1 + torch.nonzero(~(bounded.lower > self.guard)).flatten()
                if not len(self._classes):
                    self.proven = True
                    return
            self._instance = bounded.instance()

    def root(self) -> None:
        """alpha-CROWN on the whole box; optimised hidden bounds the second time."""
        if self.done or self._instance is None:
            return
        with torch.no_grad(), exact_products():
            if self._search is not None:
                self._instance = self._instance.tightened(ROOT)
                self._tight = True
            planes, found = self._instance.root(self._classes, ROOT)
            left = torch.nonzero(~(planes.lower > self.guard)).flatten()
            self._log(
                f"alpha-CROWN{', optimised hidden bounds' if self._tight else ''}: {len(left)} of {len(self._classes)} "
                f"targets open, worst {float(planes.lower.min()):.4g}, {self._instance.system.neurons} open neurons"
            )
            if not len(left):
                self.proven = True
                return
            if len(left) < len(self._classes):
                self._classes = self._classes[left]
                planes, found = self._instance.root(self._classes, ROOT)
            size = float(1 + self._instance.system.margins.offset.abs().amax())
            goal = self.guard + SLACK * size
            self._search = Search(
                instance=self._instance, classes=self._classes, guard=self.guard, goal=goal, look=self._look
            )
            self._search.plant(found)

    def grow(self, deadline: float) -> None:
        """Branch and bound until `deadline`, or until it is settled."""
        search = self._search
        if self.done or search is None:
            return
        with torch.no_grad(), exact_products():
            while not search.done and not self.witness and time.monotonic() < deadline:
                search.grow(search.nodes + SLICE, deadline)
                if time.monotonic() > self._reported + REPORT:
                    self._reported = time.monotonic()
                    self._log(f"branch and bound: {search.nodes} parts, worst bound {-search.gap:.4g}")
        if not self.witness and search.done:
            self.proven = len(search.proven()) == len(self._classes)
            self.stuck = not self.proven

    def _look(self, point: Tensor) -> list[int]:
        radius, centre = self.problem.box.radius, self.problem.box.centre
        z = centre + point.T.reshape(-1, *centre.shape[1:]).double() * radius
        if not self.witness and self._judge(z):
            self.witness = True
        return list(range(len(self._classes))) if self.witness else []

    def _drop(self, rows: list[int]) -> None:
        self.formula = self.formula.without(rows)
        self.proven = self.formula.refuted

    def _bounded(self, network: Network) -> _Bounded:
        label = torch.zeros(1, dtype=torch.long)
        boxes, relaxations, errors = relax(network, self.problem.box)
        reading = Reading(network=network, relaxations=relaxations, errors=errors)
        interval = outward_margins(network, boxes, label)
        lower = margin_planes(reading, self.problem.box, label, interval).lower[0, 1:]
        return _Bounded(network=network, boxes=boxes, relaxations=relaxations, errors=errors, lower=lower)


@dataclass(frozen=True, kw_only=True)
class _Bounded:
    """A network over the box, as `relax` reads it, and CROWN's lower bounds of its margins but the first."""

    network: Network
    boxes: Mapping[str, Box]
    relaxations: Mapping[str, Relaxation]
    errors: Mapping[str, Tensor]
    lower: Tensor

    def instance(self) -> Instance:
        """For the optimisers."""
        return Instance.of(self.network, self.boxes, self.relaxations, self.errors, 0, 0)


def allowance(problem: Problem) -> float:
    """What a row must exceed to count as refuted.

    Covers the float32 rounding of the file (certify.screen.GUARD), and the rounding of exact coefficients to float64.
    """
    formula = problem.formula
    with torch.no_grad(), exact_products():
        size = problem.network(problem.box.centre)[0].abs() @ formula.outputs.abs().T
        guard = GUARD * float(size.amax()) if len(size) else 0.0
        if bool(formula.error.any()):
            reach = walk(problem.network, OUTWARD_INTERVAL, problem.box)
            largest = torch.cat([(box.centre.abs() + box.radius).flatten() for box in (reach, problem.box)])
            guard += 2 * float((formula.error @ largest).amax())
    return guard
