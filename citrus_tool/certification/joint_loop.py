"""The counterexample-guided loop of one group: how many of its open inputs one perturbation can fool.

First every atom, an input with one rival, is attacked; those that no attack makes happen are searched alone, for one
that is refuted says more than any set. Then the counting argument (conflicts.py) proposes the largest set of atoms of
different inputs that nothing speaks against. An attack tries to fool it; otherwise its pairs are bounded jointly
(joint.py), then combinations inside it with node budgets that grow from turn to turn, until one is refuted and joins
the conflicts. What a search leaves open is attacked from near-optimal points of its worst parts' relaxations: these
lead to perturbations that signed steps from corner to corner miss. The loop is complete when the counting bound meets
the best perturbation found. It also ends when the time is up, or when nothing is left to do: what is left then are
parts that no claim closes and no attack fools, or that were given up for want of memory.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Final

import torch
from torch import Tensor

from citrus_tool.attacks.sets import Descent, around, attack_near, attack_set, attack_sets
from citrus_tool.bounds.ascent import ascend
from citrus_tool.bounds.claims import tuned_planes
from citrus_tool.bounds.execution import ExecutionView
from citrus_tool.bounds.input_planes import with_input_planes
from citrus_tool.bounds.rounding import exact_products
from citrus_tool.certification.conflicts import Atom, Combination, Conflicts
from citrus_tool.certification.execution import OpenExecution
from citrus_tool.certification.joint import JOINT_ROOT, JointProblem, Member
from citrus_tool.certification.part_products import Factor, Products, joined, multiply, trimmed
from citrus_tool.certification.parts import Leaf
from citrus_tool.certification.search import Search
from citrus_tool.certification.witnesses import Witnesses
from citrus_tool.network import Network
from citrus_tool.threat import Threat

TURNS: Final = tuple(64 * 4**turn for turn in range(9))
"""Nodes that a combination may have spent at the end of each of its turns, after the whole box."""
ALONE: Final = (64, 1024, 4096)
"""Nodes that an atom which no attack makes happen may have spent at the end of each round before the first set."""
ATTACKED: Final = 64
"""Atoms that are attacked side by side, each by STEPS steps from two starts."""
STEPS: Final = 40
"""Steps of an attack on one atom, or from a near-optimal point: few, since the loop makes thousands of them."""
WIDEST: Final = 4
"""Of larger combinations inside a choice only the whole and those are bounded that are one larger than the attack's."""
FEW: Final = 16
"""So many of the latter are bounded beside pairs."""
POINTS: Final = 4
"""Minimising points of a batch of parts that are tried as perturbations."""
PROBED: Final = 2
"""Worst parts whose near-optimal points are tried, and attacked from."""
FACTOR_NODES: Final = (16, 64)
"""Parts of the box that an atom's search has bounded when its open parts become a factor of wide products, of pairs."""
PRODUCTS: Final = 2048
"""Open products that a joint search may start from."""
PARTS: Final = 60_000
"""Open parts kept in memory."""


@dataclass(frozen=True, kw_only=True)
class Grounds:
    """Why a combination is refuted: the closed parts of the box, which cover it, in terms of its atoms' views.

    factors: where the search started from products, of each atom: then the parts cover what is closed neither in a
        factor nor as a product.  closed: those products, as in `part_products.Multiplied`.
    """

    combination: Combination
    views: tuple[ExecutionView, ...]
    leaves: tuple[Leaf, ...]
    factors: tuple[Factor, ...] = ()
    closed: tuple[Products, ...] = ()


@dataclass(frozen=True, kw_only=True)
class GroupBracket:
    """The loop's result for one group of n open inputs.

    Attributes:
        fooled_upper: no |u| <= eps fools more of the open inputs.
        u: (C, H, W) float32 perturbation that fools most, as far as PyTorch's float32 goes; a replay decides.
        conflicts: the refuted combinations behind the bound; grounds: for each of them, if recorded.
        nodes: parts of the box bounded.
        complete: nothing was left unsettled: `u` fools `fooled_upper` inputs.
        late: the loop is not complete because its time was up.
    """

    fooled_upper: int
    u: Tensor
    conflicts: Conflicts
    grounds: tuple[Grounds, ...]
    nodes: int
    complete: bool
    late: bool


@dataclass(kw_only=True)
class _Task:
    """One combination on its way; `search` is None once it was given up for want of memory."""

    views: tuple[ExecutionView, ...]
    search: Search | None
    gap: float
    turn: int = 0
    factors: tuple[Factor, ...] = ()
    closed: tuple[Products, ...] = ()

    @property
    def cost(self) -> float:
        """What another turn costs for what it promises."""
        return float(self.gap * 2.0**self.turn)


class JointLoop:
    """The loop's state; the combinations' searches stay alive between their turns."""

    def __init__(
        self,
        inputs: Sequence[OpenExecution],
        witnesses: Witnesses,
        deadline: float,
        generator: torch.Generator,
        *,
        record: bool,
    ) -> None:
        self.inputs, self.witnesses, self.deadline, self.generator, self.record = (
            inputs,
            witnesses,
            deadline,
            generator,
            record,
        )
        self.conflicts = Conflicts(rivals=[one.member.rivals for one in inputs])
        self.tasks: dict[Combination, _Task] = {}
        self.grounds: dict[frozenset[Atom], Grounds] = {}
        self.nodes = 0
        self.factors: dict[Atom, tuple[Factor, ...]] = {}
        self.with_input_planes: set[Atom] = set()
        self.point: Tensor | None = None  # what the relaxation of the part that was worst last thinks is best

    def run(self) -> tuple[int, bool]:
        """The bound, and whether the loop ended because its time was up.

        The loop is complete where the bound is at most the witnesses' count.
        """
        attacked: set[frozenset[int]] = set()
        self.search_atoms()
        while True:
            largest = self.conflicts.largest()
            if largest.bound <= self.witnesses.count:
                return largest.bound, False
            if time.monotonic() >= self.deadline:
                return largest.bound, True
            owners = frozenset(member for member, _ in largest.choice)
            if owners not in attacked:
                attacked.add(owners)
                self.attack(largest.choice, self.witnesses.best, with_rivals=False)
                continue
            if self.pairs(largest.choice):
                continue
            todo = self.choose(largest.choice)
            if todo is None:  # not complete: what is left cannot be settled
                return largest.bound, False
            self.next_turn(todo)
            task = self.tasks[todo]
            if task.search is not None and task.turn > 1 and self.point is not None:
                self.attack(largest.choice, self.point, with_rivals=False)
                self.attack(todo, self.point, with_rivals=True)

    def attack(self, combination: Combination, start: Tensor, *, with_rivals: bool) -> None:
        """Tries to fool these inputs together, with these rivals or with any, from `start` (C, H, W)."""
        owners = [member for member, _ in combination]
        with torch.enable_grad():
            u, _ = attack_set(
                self.witnesses.network,
                self.witnesses.x[owners],
                self.witnesses.reference[owners],
                self.witnesses.threat,
                start=start,
                wrong=self.witnesses.reference.new_tensor([rival for _, rival in combination]) if with_rivals else None,
                generator=self.generator,
            )
        self.witnesses.judge(u[None])

    def attack_each(self, atoms: Sequence[Atom]) -> None:
        """Tries to make each atom happen, from `best` and then, those that did not, from a random corner."""
        for attempt in range(2):
            left = [atom for atom in atoms if not self.witnesses.happened(frozenset([atom]))]
            if not left:
                return
            owners, start = [member for member, _ in left], self.witnesses.best
            if attempt:
                start = around(start, 1, self.witnesses.threat, self.generator)[0]
            with torch.enable_grad():
                u, _ = attack_sets(
                    self.witnesses.network,
                    self.witnesses.x[owners],
                    self.witnesses.reference[owners],
                    torch.arange(len(left), device=start.device),
                    start.expand(len(left), *start.shape),
                    self.witnesses.threat,
                    Descent(steps=STEPS),
                    wrong=self.witnesses.reference.new_tensor([rival for _, rival in left]),
                )
            self.witnesses.judge(u)

    def search_atoms(self) -> None:
        """Attacks every atom, then searches those that no attack makes happen, a round of nodes after the other."""
        atoms = [(member, rival) for member, rivals in enumerate(self.conflicts.rivals) for rival in rivals]
        if not self.over():
            for first in range(0, len(atoms), ATTACKED):
                self.attack_each(atoms[first : first + ATTACKED])
        for nodes in ALONE:
            for atom in atoms:
                if self.witnesses.happened(frozenset([atom])) or self.conflicts.covers([atom]) or self.over():
                    continue
                if self.factor_of(atom, wide=True) is None or self.witnesses.happened(frozenset([atom])):
                    continue
                if atom not in self.with_input_planes:
                    self.with_input_planes.add(atom)
                    self.add_input_planes(atom)
                task = self.tasks[(atom,)]
                if task.search is not None:
                    self.search_on((atom,), task, nodes)

    def over(self) -> bool:
        """Whether the time is up, or the attack has met the bound."""
        return time.monotonic() >= self.deadline or self.conflicts.largest().bound <= self.witnesses.count

    def pairs(self, choice: Combination) -> bool:
        """Gives every pair inside the choice its first bound, the promising ones first; whether one was refuted."""
        before = len(self.conflicts.refuted)
        new = [pair for pair in combinations(choice, 2) if pair not in self.tasks]
        for pair in sorted(new, key=self.expected_cost):
            if time.monotonic() >= self.deadline:
                break
            if not self.witnesses.happened(frozenset(pair)) and not self.conflicts.covers(pair):
                self.first_bound(pair)
        return len(self.conflicts.refuted) != before

    def choose(self, choice: Combination) -> Combination | None:
        """The combination inside the choice that is to be worked on next.

        A refuted pair excludes most. Sets of one more than the attack has would be enough, and the whole choice is the
        easiest to refute, but they are worth it only where there are few; others come when no pair is left.
        """
        enough = min(self.witnesses.count + 1, len(choice))
        small = {1, min(2, len(choice))}
        broad = {enough, len(choice)} if math.comb(len(choice), enough) <= FEW else set()
        return self.best_of(choice, small | broad) or self.best_of(
            choice, {*range(3, min(enough, WIDEST) + 1), enough, len(choice)}
        )

    def best_of(self, choice: Combination, widths: Collection[int]) -> Combination | None:
        """The combination of one of these sizes inside the choice that promises most."""
        best: tuple[tuple[float, float], Combination] | None = None
        for width in sorted(widths):
            for some in combinations(choice, width):
                if self.witnesses.happened(frozenset(some)):
                    continue
                task = self.tasks.get(some)
                if task is not None and (task.search is None or task.search.done or task.turn > len(TURNS)):
                    continue
                key = (int(task is not None or width > 2), self.expected_cost(some) if task is None else task.cost)
                if best is None or key < best[0]:
                    best = key, some
        return None if best is None else best[1]

    def expected_cost(self, combination: Combination) -> float:
        """What a combination without a bound may cost: twice the least of what its parts do."""
        inside = set(combination)
        parts = [task.cost for some, task in self.tasks.items() if len(some) < len(inside) and inside.issuperset(some)]
        return 2.0 * min(parts, default=math.inf)

    def next_turn(self, combination: Combination) -> None:
        """One turn of a combination: its first bound, or further parts of the box."""
        task = self.tasks.get(combination)
        if task is None:
            self.first_bound(combination)
            return
        assert task.search is not None
        self.search_on(combination, task, task.search.nodes + TURNS[task.turn - 1])
        task.turn += 1
        kept = sum(len(other.search) for other in self.tasks.values() if other.search is not None)
        if kept > PARTS:
            worst = max(
                (t for t in self.tasks.values() if t.search is not None), key=lambda t: (t.gap < math.inf, t.gap)
            )
            worst.search = None

    def first_bound(self, combination: Combination) -> None:
        """A combination's first bound: an atom's on the whole box, others' on the product of their atoms' factors."""
        members = tuple(self.inputs[owner].member for owner, _ in combination)
        task, problem, search = self.new_task(combination, members)
        factors: list[Factor] = []
        for atom in combination if len(combination) > 1 else ():
            factor = self.factor_of(atom, wide=len(combination) > 2)
            if factor is None:  # refuted on the way
                return
            factors.append(factor)
        box = members[0].execution.box
        product = multiply(factors, box, limit=PRODUCTS) if factors else None
        if product is None:
            self.bound_whole_box(problem, search)
        else:
            if self.record:
                task.factors, task.closed = tuple(factors), product.closed
            search.start_from_parts(trimmed(joined(factors, product.open)))
            self.nodes += search.nodes
        task.gap = search.gap
        self.take_proof(combination, task)
        self.attack_from_relaxation(combination, task)

    def add_input_planes(self, atom: Atom) -> None:
        """Starts the atom's search again, with planes for its rival; its factors stay as they are."""
        owner, rival = atom
        member = self.inputs[owner].member
        execution = with_input_planes(member.execution, rival, self.factors[atom][-1].duals)
        if execution is not member.execution:
            task, problem, search = self.new_task((atom,), (replace(member, execution=execution),))
            self.bound_whole_box(problem, search)
            task.gap = search.gap
            self.take_proof((atom,), task)

    def new_task(self, combination: Combination, members: tuple[Member, ...]) -> tuple[_Task, JointProblem, Search]:
        """A task for the combination's search, which has no bound yet."""
        problem = JointProblem(members=members, combinations=(tuple(rival for _, rival in combination),))
        search = Search(problem=problem, guard=0.0, goal=problem.goal, watch=self.try_points, record=self.record)
        task = _Task(views=tuple(member.execution.view for member in members), search=search, gap=math.inf, turn=1)
        self.tasks[combination] = task
        return task, problem, search

    def bound_whole_box(self, problem: JointProblem, search: Search) -> None:
        """The first bound, on the whole box."""
        index = torch.zeros(1, dtype=torch.long, device=self.witnesses.x.device)
        search.start(ascend(problem.system, problem.targets(index), problem.start(1), JOINT_ROOT, goal=problem.goal))
        self.nodes += 1

    def factor_of(self, atom: Atom, *, wide: bool) -> Factor | None:
        """The atom's factor for wide products or for pairs; None once it is refuted."""
        if atom not in self.factors:
            if (atom,) not in self.tasks:
                self.first_bound((atom,))
            task = self.tasks[(atom,)]
            found = []
            for nodes in FACTOR_NODES:
                if task.search is not None:
                    self.search_on((atom,), task, nodes)
                factor = None if task.search is None else self.open_parts(atom, task.search)
                if factor is None:
                    return None
                found.append(factor)
            self.factors[atom] = tuple(found)
        return self.factors[atom][0 if wide else 1]

    def open_parts(self, atom: Atom, search: Search) -> Factor | None:
        """The open parts of an atom's search, with claimed planes; None where there are none."""
        duals = search.open_duals()
        if duals is None:
            return None
        owner, rival = atom
        member = self.inputs[owner].member
        plain = replace(trimmed(duals), share=None)
        rows = member.execution.margins(torch.full((plain.alpha.shape[1],), rival, device=plain.alpha.device))
        planes = tuned_planes(member.execution.relaxed, member.execution.system, *rows, plain.on_grid())
        return Factor(duals=plain, planes=planes, closed=tuple(search.leaves or ()))

    def search_on(self, combination: Combination, task: _Task, nodes: int) -> None:
        """Searches until the combination has spent `nodes`, and takes over a proof."""
        assert task.search is not None
        before = task.search.nodes
        task.search.grow(nodes, self.deadline)
        self.nodes += task.search.nodes - before
        task.gap = task.search.gap
        self.take_proof(combination, task)
        self.attack_from_relaxation(combination, task)

    def attack_from_relaxation(self, combination: Combination, task: _Task) -> None:
        """Attacks the combination from what the relaxations of its worst parts think is best."""
        if task.search is None or self.witnesses.happened(frozenset(combination)):
            return
        means, _ = task.search.near_optimal(PROBED)
        count, owners = means.shape[1], [member for member, _ in combination]
        if not count:
            return
        u = means.T.reshape(-1, *self.witnesses.x.shape[1:]).float() * self.witnesses.threat.inner
        self.point = u[0]
        self.witnesses.judge(u)
        rivals = self.witnesses.reference.new_tensor([rival for _, rival in combination])
        with torch.enable_grad():
            found = attack_near(
                self.witnesses.network,
                self.witnesses.x[owners],
                self.witnesses.reference[owners],
                self.witnesses.threat,
                points=u,
                wrong=rivals.expand(count, -1),
                steps=STEPS,
            )
        self.witnesses.judge(found)

    def try_points(self, bound: Tensor, point: Tensor) -> None:
        """Tries the minimising points (d, D) of the parts with the worst bounds as perturbations."""
        worst = bound.topk(min(POINTS, len(bound)), largest=False).indices
        self.witnesses.judge(
            point[:, worst].T.reshape(-1, *self.witnesses.x.shape[1:]).float() * self.witnesses.threat.inner
        )

    def take_proof(self, combination: Combination, task: _Task) -> None:
        """Takes over a proof."""
        if task.search is None or not task.search.proven():
            return
        self.conflicts.add(combination)
        if task.search.leaves is not None:
            self.grounds[frozenset(combination)] = Grounds(
                combination=combination,
                views=task.views,
                leaves=tuple(task.search.leaves),
                factors=task.factors,
                closed=task.closed,
            )
        task.search = None


def bracket_group(
    network: Network,
    inputs: Sequence[OpenExecution],
    u: Tensor,
    threat: Threat,
    *,
    seconds: float,
    generator: torch.Generator,
    record: bool = False,
) -> GroupBracket:
    """Brackets how many of a group's open inputs one perturbation can fool.

    Args:
        network: in float32, for trying perturbations.
        inputs: at least one.
        u: (C, H, W) float32, the best perturbation known.
        seconds: after which the bracket is returned as it is.
        record: keeps the grounds.
    """
    reference = torch.tensor([one.member.execution.label for one in inputs], device=u.device)
    x = torch.stack([one.x for one in inputs])
    witnesses = Witnesses(network=network, x=x, reference=reference, threat=threat, best=u)
    loop = JointLoop(inputs, witnesses, time.monotonic() + seconds, generator, record=record)
    with torch.no_grad(), exact_products():
        witnesses.judge(u[None])
        bound, late = loop.run()
    grounds = tuple(loop.grounds[old] for old in loop.conflicts.refuted if old in loop.grounds)
    return GroupBracket(
        fooled_upper=bound,
        u=witnesses.best,
        conflicts=loop.conflicts,
        grounds=grounds,
        nodes=loop.nodes,
        complete=bound <= witnesses.count,
        late=late,
    )
