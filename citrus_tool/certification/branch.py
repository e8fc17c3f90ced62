"""Per-input branch and bound: proofs, witness candidates and the best planes for inputs that CROWN leaves open.

Each input goes through an attack on it alone, alpha-CROWN (bounds/ascent.py), a search over parts of its box
(search.py), the same with optimised hidden bounds, and, when it stays unproven, a search that raises its planes, as in
RABBit's strong branching (Suresh et al. 2024, section 4.2). Inputs take turns with node budgets that grow from turn to
turn, so that many easy inputs are done before the first hard one ends. What the first turn leaves open is attacked
again, from near-optimal points of its relaxations.

Networks with other nonlinear layers than ReLU and LeakyReLU are left open.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from citrus_tool.attacks.effort import Effort
from citrus_tool.attacks.sets import attack_near
from citrus_tool.attacks.universal import attack_groups
from citrus_tool.bounds.ascent import ROOT, Ascent, ascend
from citrus_tool.bounds.claims import least_above
from citrus_tool.bounds.crown import LinearMargins, relax
from citrus_tool.bounds.execution import ExecutionView, FoldedExecution
from citrus_tool.bounds.fold import foldable, foldable_nodes
from citrus_tool.bounds.linear import LinearBounds
from citrus_tool.bounds.rounding import exact_products
from citrus_tool.certification.parts import Leaf, PartDuals
from citrus_tool.certification.search import MarginProblem, Search
from citrus_tool.network import INPUT, Network
from citrus_tool.progress import Progress, Silent
from citrus_tool.threat import Box, Threat

SLACK: Final = 2.0**-15
"""What the ascent must exceed the guard by before its bound is claimed, in units of the largest |margin offset|: some
hundred float32 roundings, so that hardly a claim (float64) fails that an ascent (float32) has promised."""
TURNS: Final = tuple(32 * 4**turn for turn in range(12))
"""Nodes that an input may have spent at the end of each of its turns."""
TOGETHER: Final = 32
"""Inputs whose open parts are kept in memory together, at most."""
MEMORY: Final = 2**30
"""Bytes that their folded systems may take, roughly."""
PROBED: Final = 8
"""Worst parts of an input from whose near-optimal points it is attacked."""
STEPS: Final = 30
"""Steps of such an attack: it starts close to the best point of a part."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much work one call may do.

    Attributes:
        nodes: parts of a box bounded per input, over all its rivals, to prove it; 0: alpha-CROWN alone. Deterministic.
        witness_nodes: parts bounded per input once a witness is known, to exclude its other rivals.
        plane_nodes: parts bounded per rival that stays open, to raise its plane.
        seconds: wall time of the call, after which whatever is still open stays open; None: no limit.
        attack_steps, attack_restarts: of the attack on each input alone that comes first; 0 restarts: none.
    """

    nodes: int = 4000
    witness_nodes: int = 200
    plane_nodes: int = 64
    seconds: float | None = None
    attack_steps: int = 50
    attack_restarts: int = 2


class BranchVerdict(Enum):
    """What became of an input."""

    PROVEN = "every wrong label is excluded"
    WITNESS = "a perturbation was found that fools the network"
    OPEN = "neither: the budget ended, or the network has layers that branch and bound does not split"


@dataclass(frozen=True, kw_only=True)
class RivalProof:
    """Why `rival` cannot win: the closed parts of the box, which cover it, in terms of an execution's `view`."""

    rival: int
    view: ExecutionView
    leaves: tuple[Leaf, ...]


@dataclass(frozen=True, kw_only=True)
class Branched:
    """The result for n inputs.

    Attributes:
        margins: the best bounds and planes found, never worse than those known before; in real arithmetic. A rival that
            branching proved has coefficient 0 and the proven bound as offset.
        verdict: per input.
        witness: (n, C, H, W) float32 perturbations within eps, zero unless the verdict is WITNESS. They fool the
            network as PyTorch runs it; a replay on the file decides.
        nodes: (n,) parts of a box that were bounded.
        proofs: per input, of the rivals that were not excluded before; empty unless they are recorded.
    """

    margins: LinearMargins
    verdict: tuple[BranchVerdict, ...]
    witness: Float[Tensor, "n C H W"]
    nodes: Int[Tensor, " n"]
    proofs: tuple[tuple[RivalProof, ...], ...]

    @property
    def proven(self) -> Bool[Tensor, " n"]:
        """Flags of the proven inputs."""
        return torch.tensor([verdict is BranchVerdict.PROVEN for verdict in self.verdict], dtype=torch.bool)


def branch_and_bound(
    network: Network,
    x: Float[Tensor, "n C H W"],
    reference: Int[Tensor, " n"],
    threat: Threat,
    *,
    known: LinearMargins,
    guard: Float[Tensor, " n"] | None = None,
    budget: Budget,
    generator: torch.Generator,
    record: bool = False,
    progress: Progress | None = None,
) -> Branched:
    """Tries to prove or to refute every input on its own.

    Args:
        network: in float64, evaluation mode, on the device of `x`.
        x: float32 pixels.
        known: bounds found before (CROWN's); a rival counts as proven above the input's guard.
        guard: (n,) what a margin must exceed; default 0.
        generator: of the attack; on the CPU.
        record: keeps proofs. Only rivals that the search excludes have one, not those that a raised plane excludes.
        progress: gets one unit per input.
    """
    report = progress or Silent()
    deadline = math.inf if budget.seconds is None else time.monotonic() + budget.seconds
    guard = torch.zeros(len(x), dtype=torch.float64) if guard is None else guard.double().cpu()
    board = _Board(
        lower=known.lower.clone(),
        coefficient=known.coefficient.clone(),
        offset=known.offset.clone(),
        verdict=[BranchVerdict.OPEN] * len(x),
        witness=torch.zeros_like(x, dtype=torch.float32),
        nodes=torch.zeros(len(x), dtype=torch.int64),
        proofs=[()] * len(x),
    )
    single = network.frozen(dtype=torch.float32, device=x.device)
    with torch.no_grad():
        board.attack(single, x, reference, threat, guard, budget, generator)
    report.start("branch and bound", len(x), "inputs")
    waiting = [i for i, verdict in enumerate(board.verdict) if verdict is not BranchVerdict.PROVEN]
    report.advance(len(x) - len(waiting))
    if not foldable(network):
        report.advance(len(waiting))
        waiting = []
    with torch.no_grad(), exact_products():
        for first in range(0, len(waiting), TOGETHER):
            some = waiting[first : first + TOGETHER]
            relaxed = relax(network, threat.enclosure(x[some]))
            for positions in _batches(network, relaxed.boxes):
                share = deadline
                if budget.seconds is not None:
                    now = time.monotonic()
                    share = now + max(0.0, deadline - now) * len(positions) / (len(waiting) - first - positions[0])
                cases = [
                    _InputSearch(
                        execution=FoldedExecution.of(relaxed, int(reference[number]), position),
                        network=single,
                        x=x[number].float(),
                        threat=threat,
                        guard=float(guard[number]),
                        classes=torch.nonzero(~(board.lower[number] > guard[number])).flatten(),
                        witness=board.witness[number] if board.verdict[number] is BranchVerdict.WITNESS else None,
                        record=record,
                    )
                    for position, number in ((position, some[position]) for position in positions)
                ]
                _take_turns(cases, budget, share)
                for position, case in zip(positions, cases, strict=True):
                    board.take(some[position], case)
                    report.advance(1)
    report.finish()
    margins = LinearMargins(lower=board.lower, coefficient=board.coefficient, offset=board.offset)
    return Branched(
        margins=margins,
        verdict=tuple(board.verdict),
        witness=board.witness,
        nodes=board.nodes,
        proofs=tuple(board.proofs),
    )


@dataclass(frozen=True, kw_only=True)
class _Board:
    """The results so far, updated in place."""

    lower: Tensor
    coefficient: Tensor
    offset: Tensor
    verdict: list[BranchVerdict]
    witness: Tensor
    nodes: Tensor
    proofs: list[tuple[RivalProof, ...]]

    def attack(
        self,
        network: Network,
        x: Tensor,
        reference: Tensor,
        threat: Threat,
        guard: Tensor,
        budget: Budget,
        generator: torch.Generator,
    ) -> None:
        """Settles what is proven already, and the inputs that an attack on each alone fools."""
        proven = (self.lower.cpu() > guard[:, None]).all(dim=1)
        for number in torch.nonzero(proven).flatten().tolist():
            self.verdict[number] = BranchVerdict.PROVEN
        left = torch.nonzero(~proven).flatten()
        if not len(left) or budget.attack_restarts == 0:
            return
        present = torch.ones(len(left), 1, dtype=torch.bool, device=x.device)
        images, classes = x[left][:, None].float(), reference[left][:, None]
        with torch.enable_grad():
            u, fooled = attack_groups(
                network,
                images,
                classes,
                present,
                threat,
                Effort(steps=budget.attack_steps, restarts=budget.attack_restarts),
                generator,
            )
        for position, number in enumerate(left.tolist()):
            if int(fooled[position]):
                self.verdict[number] = BranchVerdict.WITNESS
                self.witness[number] = u[position]

    def take(self, number: int, case: _InputSearch) -> None:
        """Takes over a case's bounds where they are better, and its verdict."""
        better = case.lower > self.lower[number, case.classes]
        classes = case.classes[better]
        self.lower[number, classes] = case.lower[better]
        self.coefficient[number, classes] = case.coefficient[better]
        self.offset[number, classes] = case.offset[better]
        self.nodes[number] = case.nodes
        self.proofs[number] = tuple(case.proofs)
        if case.proven:
            self.verdict[number] = BranchVerdict.PROVEN
        elif case.witness is not None:
            self.verdict[number], self.witness[number] = BranchVerdict.WITNESS, case.witness


class _InputSearch:
    """One input on its way: its execution, the search over its rivals, and the planes claimed so far.

    `lower`, `coefficient`, `offset`: claimed, per class in `classes`.
    """

    def __init__(
        self,
        *,
        execution: FoldedExecution,
        network: Network,
        x: Tensor,
        threat: Threat,
        guard: float,
        classes: Tensor,
        witness: Tensor | None,
        record: bool,
    ) -> None:
        self.execution, self.network, self.x, self.threat, self.guard = execution, network, x, threat, guard
        self.classes = classes
        self.witness = witness
        self.record = record
        self.proofs: list[RivalProof] = []
        self.lower = torch.full((len(classes),), -math.inf, dtype=torch.float64, device=classes.device)
        self.offset = self.lower.clone()
        self.coefficient = x.new_zeros(len(classes), *x.shape, dtype=torch.float64)
        self.refuted: set[int] = set()
        if witness is not None:
            self._run(witness[None])
        self.spent = 0
        self.tight = False
        self.search = self._search()

    @property
    def nodes(self) -> int:
        """Parts bounded so far."""
        return self.spent + self.search.nodes

    @property
    def proven(self) -> bool:
        """Every rival is excluded."""
        return bool((self.lower > self.guard).all())

    def _search(self) -> Search:
        size = float(1 + self.execution.system.margins.offset.abs().amax())
        goal = self.guard + SLACK * size
        problem = MarginProblem(execution=self.execution, classes=self.classes)
        return Search(problem=problem, guard=self.guard, goal=goal, look=self.refuted_at, record=self.record)

    def refuted_at(self, point: Tensor) -> set[int]:
        """Runs the network at the minimising points v (d, D); the classes that any point refutes, by position."""
        self._run(point.T.reshape(-1, *self.x.shape).float() * self.threat.inner)
        return self.refuted

    def _run(self, u: Tensor) -> None:
        logits = self.network(self.x + u)
        wins = logits[:, self.classes] >= logits[:, [self.execution.label]]
        fooled = torch.nonzero(wins.any(1)).flatten()
        if self.witness is None and len(fooled):
            self.witness = u[fooled[0]]
        self.refuted.update(torch.nonzero(wins.any(0)).flatten().tolist())

    def attack_from_relaxations(self) -> None:
        """Attacks the input from what the relaxations of its worst parts think is best."""
        means, place = self.search.near_optimal(PROBED)
        count = len(place)
        if not count:
            return
        u = means.T.reshape(-1, *self.x.shape).float() * self.threat.inner
        self._run(u)
        with torch.enable_grad():
            found = attack_near(
                self.network,
                self.x[None],
                place.new_tensor([self.execution.label]),
                self.threat,
                points=u,
                wrong=self.classes[place][:, None],
                steps=STEPS,
            )
        self._run(found)
        self.search.drop(self.refuted)

    def bound_whole_box(self) -> None:
        """alpha-CROWN on the whole box; what stays open is the root of a tree."""
        planes, found = self.execution.root(self.classes, ROOT)
        if self.record:
            self._note_root(planes, found)
        better = planes.lower > self.lower
        self.lower = torch.where(better, planes.lower, self.lower)
        self.offset = torch.where(better, planes.offset, self.offset)
        self.coefficient[better] = planes.coefficient[better]
        self.search.start(found)
        self.search.drop(self.refuted)

    def _note_root(self, planes: LinearBounds, found: Ascent) -> None:
        """Records the rivals that are excluded on the whole box."""
        places = torch.nonzero((planes.lower > self.guard) & ~(self.lower > self.guard)).flatten().tolist()
        for place, part in zip(places, PartDuals.of(found.duals.on_grid(), places), strict=True):
            self._note(place, (Leaf(target=place, duals=part, bound=float(planes.lower[place])),))

    def _note(self, place: int, leaves: tuple[Leaf, ...]) -> None:
        self.proofs.append(RivalProof(rival=int(self.classes[place]), view=self.execution.view, leaves=leaves))

    def tighten(self) -> None:
        """Optimises the hidden bounds and starts again from the root with them, for the rivals that are open."""
        self.take_proven()
        self.spent += self.search.nodes
        self.tight = True
        self.execution = self.execution.tightened(ROOT)
        self.search = self._search()
        self.bound_whole_box()
        self.search.drop(torch.nonzero(self.lower > self.guard).flatten().tolist())

    def limit(self, turn: int, budget: Budget) -> int:
        """Nodes that the input may have spent at the end of a turn."""
        return turn if self.witness is None else min(turn, budget.witness_nodes)

    def over(self, turn: int, budget: Budget) -> bool:
        """Whether there is nothing to do in a turn."""
        return self.search.done or self.nodes >= self.limit(turn, budget)

    def grow(self, nodes: int, deadline: float) -> None:
        """Searches until `nodes` parts have been bounded in all."""
        self.search.grow(nodes - self.spent, deadline)

    def take_proven(self) -> None:
        """Takes over the rivals that the search has proven."""
        proven = torch.tensor(self.search.proven(), dtype=torch.long, device=self.classes.device)
        lower = self.search.lower()[proven]
        gained = (self.lower[proven] <= self.guard) & (lower > self.guard)
        proven = proven[gained]
        for place in proven.tolist() if self.search.leaves is not None else ():
            self._note(place, tuple(leaf for leaf in self.search.leaves or () if leaf.target == place))
        self.lower[proven] = self.offset[proven] = lower[gained]
        self.coefficient[proven] = 0.0

    def raise_planes(self, nodes: int, deadline: float) -> None:
        """Raises the planes of the rivals that stay open, slopes kept, by a search of `nodes` parts for each."""
        box = self.execution.box
        for place in torch.nonzero(~(self.lower > self.guard)).flatten().tolist():
            if time.monotonic() >= deadline:
                return
            one = slice(place, place + 1)
            problem = MarginProblem(execution=self.execution, classes=self.classes[one], shift=self.coefficient[one])
            search = Search(problem=problem, guard=math.inf, goal=math.inf)
            targets = problem.targets(torch.zeros_like(self.classes[one]))
            search.start(ascend(problem.system, targets, problem.start(1), ROOT))
            search.grow(nodes, deadline)
            self.spent += search.nodes
            self.offset[one] = torch.maximum(self.offset[one], search.lower())
            plane = LinearBounds(coefficient=self.coefficient[one], offset=self.offset[one], lower=self.lower[one])
            self.lower[one] = torch.maximum(
                self.lower[one], least_above(plane, torch.zeros_like(plane.coefficient), box)
            )


def _batches(network: Network, boxes: Mapping[str, Box]) -> list[list[int]]:
    """The inputs of these boxes, by position, in order, in lists whose folded systems fit into MEMORY."""
    inputs = [boxes[node.inputs[0]] for node in foldable_nodes(network)]
    neurons = torch.stack([((box.lower < 0) & (box.upper > 0)).flatten(1).sum(1) for box in inputs]).sum(0)
    batches: list[list[int]] = []
    room = 0.0
    for position, count in enumerate(neurons.tolist()):
        size = 12.0 * count * (boxes[INPUT].radius[0].numel() + count / 2)  # each matrix thrice, float32
        if not batches or size > room:
            batches.append([])
            room = MEMORY
        batches[-1].append(position)
        room -= size
    return batches


def _take_turns(cases: Sequence[_InputSearch], budget: Budget, deadline: float) -> None:
    """Works on the cases until all are done, each has spent its budget, or the deadline has passed.

    A case's result depends on its own budget only, unless the deadline comes first. Within a turn the smallest gaps go
    first. Hidden bounds are optimised for the inputs that the first turn leaves open.
    """
    for case in cases:
        if time.monotonic() < deadline:
            case.bound_whole_box()
    turns = [turn for turn in TURNS if turn < budget.nodes] + [budget.nodes]
    for number, turn in enumerate(turns):
        for case in sorted(cases, key=lambda case: case.search.gap):
            if case.over(turn, budget) or time.monotonic() >= deadline:
                continue
            if number and not case.tight:
                case.tighten()
                if case.witness is None and budget.attack_restarts:
                    case.attack_from_relaxations()
            case.grow(case.limit(turn, budget), deadline)
    for case in cases:
        case.take_proven()
        if not case.proven and not case.tight and time.monotonic() < deadline:
            case.tighten()
            case.take_proven()
        if not case.proven and budget.plane_nodes:
            case.raise_planes(budget.plane_nodes, deadline)
