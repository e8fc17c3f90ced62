"""Per-input branch and bound: proofs, witness candidates and the best planes for inputs that CROWN leaves open.

Wang et al. 2021, "Beta-CROWN", section 3.3, with filtered smart branching (De Palma et al. 2021, "Improved Branch and
Bound for Neural Network Verification via Lagrangian Decomposition", section 5) over the intercept score of BaBSR
(Bunel et al. 2020, "Branch and Bound for Piecewise Linear Neural Network Verification").
Differs from the papers in: (1) every (input, label) pair is a tree of its own, so labels split on their own neurons;
(2) hidden bounds are optimised once, for the whole box, and kept; (3) a child starts from its parent's slopes and from
the multiplier that reproduces the parent's bound; (4) a part of the box counts as proven only once a float64 bound with
outward errors says so (`optimised.tuned_planes`); (5) inputs take turns, with node budgets that grow from turn to turn,
so that many easy inputs are done before the first hard one ends.

Networks with other nonlinear layers than ReLU and LeakyReLU are left open.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from citrus_tool.attacks.universal import attack_groups, float32_at_most
from citrus_tool.bounds.crown import LinearMargins, relax
from citrus_tool.bounds.fold import foldable
from citrus_tool.bounds.optimised import (
    COLUMNS,
    ROOT,
    Ascent,
    Duals,
    Instance,
    Schedule,
    Targets,
    ascend,
    children,
    tuned_planes,
)
from citrus_tool.bounds.rounding import enclose, exact_products
from citrus_tool.network import Network
from citrus_tool.progress import Progress, Silent

CHILD: Final = Schedule(steps=10)
"""Adam's steps on a part of a box."""
TRIAL: Final = Schedule(steps=0)
"""The steps for which a candidate is tried."""
CANDIDATES: Final = 4
"""Neurons per domain whose split is tried before one is chosen."""
MINOR: Final = 1e-3
"""What a neuron with a positive coefficient, whose line below is the loose one, counts for beside a negative one."""
BETTER_HALF: Final = 0.3
"""Weight of the better child's bound in a candidate's score; the worse child's has weight 1."""
SLACK: Final = 2.0**-15
"""What the ascent (float32) must exceed the guard by, in units of the largest |margin offset|, before it is claimed."""
TURNS: Final = tuple(32 * 4**turn for turn in range(12))
"""Nodes that an input may have spent at the end of each of its turns."""
TOGETHER: Final = 32
"""Inputs whose open parts are kept in memory together."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much work one call may do.

    Attributes:
        nodes: parts of a box bounded per input, over all its labels; 0: alpha-CROWN alone. Deterministic.
        seconds: wall time of the call, after which whatever is still open stays open; None: no limit.
        attack_steps, attack_restarts: of the attack on each input alone that comes first; 0 restarts: none.
    """

    nodes: int = 4000
    seconds: float | None = None
    attack_steps: int = 50
    attack_restarts: int = 2


class Verdict(Enum):
    """What became of an input."""

    PROVEN = "every wrong label is excluded"
    WITNESS = "a perturbation was found that fools the network"
    OPEN = "neither: the budget ended, or the network has layers that branch and bound does not split"


@dataclass(frozen=True, kw_only=True)
class Branched:
    """The result for n inputs.

    Attributes:
        margins: the best bounds and planes found, never worse than those known before; in real arithmetic. A label that
            branching proved has coefficient 0 and the proven bound as offset.
        verdict: per input.
        witness: (n, C, H, W) float32 perturbations within eps, zero unless the verdict is WITNESS. They fool the
            network as PyTorch runs it; a replay on the file decides.
        nodes: (n,) parts of a box that were bounded.
    """

    margins: LinearMargins
    verdict: tuple[Verdict, ...]
    witness: Float[Tensor, "n C H W"]
    nodes: Int[Tensor, " n"]

    @property
    def proven(self) -> Bool[Tensor, " n"]:
        """Flags of the proven inputs."""
        return torch.tensor([verdict is Verdict.PROVEN for verdict in self.verdict], dtype=torch.bool)


def branch_and_bound(
    network: Network,
    x: Float[Tensor, "n C H W"],
    labels: Int[Tensor, " n"],
    eps: float,
    *,
    known: LinearMargins,
    guard: Float[Tensor, " n"] | None = None,
    budget: Budget,
    generator: torch.Generator,
    progress: Progress | None = None,
) -> Branched:
    """Tries to prove or to refute every input on its own.

    Args:
        network: in float64, evaluation mode, on the device of `x`.
        x: float32 pixels.
        known: bounds found before (CROWN's); a label counts as proven above the input's guard.
        guard: (n,) what a margin must exceed; default 0.
        generator: of the attack; on the CPU.
        progress: gets one unit per input.
    """
    report = progress or Silent()
    deadline = math.inf if budget.seconds is None else time.monotonic() + budget.seconds
    guard = torch.zeros(len(x), dtype=torch.float64) if guard is None else guard.double().cpu()
    board = _Board(
        lower=known.lower.clone(),
        coefficient=known.coefficient.clone(),
        offset=known.offset.clone(),
        verdict=[Verdict.OPEN] * len(x),
        witness=torch.zeros_like(x, dtype=torch.float32),
        nodes=torch.zeros(len(x), dtype=torch.int64),
    )
    single = network.frozen(dtype=torch.float32, device=x.device)
    with torch.no_grad():
        board.attack(single, x, labels, eps, guard, budget, generator)
    report.start("branch and bound", len(x), "inputs")
    report.advance(sum(verdict is not Verdict.OPEN for verdict in board.verdict))
    waiting = [i for i, verdict in enumerate(board.verdict) if verdict is Verdict.OPEN]
    with torch.no_grad(), exact_products():
        for first in range(0, len(waiting) if foldable(network) else 0, TOGETHER):
            some = torch.tensor(waiting[first : first + TOGETHER], device=x.device)
            share = deadline
            if budget.seconds is not None:
                now = time.monotonic()
                share = now + max(0.0, deadline - now) * len(some) / (len(waiting) - first)
            boxes, relaxations, errors = relax(network, enclose(x[some], eps))
            trees = [
                _Tree(
                    instance=Instance.of(network, boxes, relaxations, errors, int(labels[number]), position),
                    network=single,
                    x=x[number].float(),
                    eps=float32_at_most(eps),
                    guard=float(guard[number]),
                    classes=torch.nonzero(~(board.lower[number] > guard[number])).flatten(),
                )
                for position, number in enumerate(some.tolist())
            ]
            _take_turns(trees, budget.nodes, share)
            for number, tree in zip(some.tolist(), trees, strict=True):
                board.note(number, tree)
                report.advance(1)
    report.finish()
    margins = LinearMargins(lower=board.lower, coefficient=board.coefficient, offset=board.offset)
    return Branched(margins=margins, verdict=tuple(board.verdict), witness=board.witness, nodes=board.nodes)


@dataclass(frozen=True, kw_only=True)
class _Board:
    """The results so far, updated in place."""

    lower: Tensor
    coefficient: Tensor
    offset: Tensor
    verdict: list[Verdict]
    witness: Tensor
    nodes: Tensor

    def attack(
        self,
        network: Network,
        x: Tensor,
        labels: Tensor,
        eps: float,
        guard: Tensor,
        budget: Budget,
        generator: torch.Generator,
    ) -> None:
        """Settles what is proven already, and the inputs that an attack on each alone fools."""
        proven = (self.lower.cpu() > guard[:, None]).all(dim=1)
        for number in torch.nonzero(proven).flatten().tolist():
            self.verdict[number] = Verdict.PROVEN
        left = torch.nonzero(~proven).flatten()
        if not len(left) or budget.attack_restarts == 0:
            return
        present = torch.ones(len(left), 1, dtype=torch.bool, device=x.device)
        images, classes = x[left][:, None].float(), labels[left][:, None]
        with torch.enable_grad():
            u, fooled = attack_groups(
                network, images, classes, present, eps,
                steps=budget.attack_steps, restarts=budget.attack_restarts, generator=generator,
            )  # fmt: skip
        for position, number in enumerate(left.tolist()):
            if int(fooled[position]):
                self.verdict[number] = Verdict.WITNESS
                self.witness[number] = u[position]

    def note(self, number: int, tree: _Tree) -> None:
        """Takes over a tree's bounds where they are better, and its verdict."""
        tree.settle()
        better = tree.lower > self.lower[number, tree.classes]
        classes = tree.classes[better]
        self.lower[number, classes] = tree.lower[better]
        self.coefficient[number, classes] = tree.coefficient[better]
        self.offset[number, classes] = tree.offset[better]
        self.nodes[number] = tree.nodes
        if tree.witness is not None:
            self.verdict[number], self.witness[number] = Verdict.WITNESS, tree.witness
        elif bool((self.lower[number] > tree.guard).all()):
            self.verdict[number] = Verdict.PROVEN


@dataclass(frozen=True, kw_only=True)
class _Domain:
    """A part of the box that is not proven for one label.

    alpha (U,) float16, split, side, beta (k,) as in Duals; `candidates` (c,) the neurons that promise most, `weight`
    (c,) the coefficients of their outputs.
    """

    label: int  # position among the tree's classes
    alpha: Tensor
    split: Tensor
    side: Tensor
    beta: Tensor
    candidates: Tensor
    weight: Tensor


class _Tree:
    """The search for one input; the parts of all its labels in one heap, the worst bound first.

    `lower`, `coefficient`, `offset`: claimed, per class in `classes`.
    """

    def __init__(
        self, *, instance: Instance, network: Network, x: Tensor, eps: float, guard: float, classes: Tensor
    ) -> None:
        self.instance, self.network, self.x, self.eps, self.guard = instance, network, x, eps, guard
        self.classes = classes
        self.goal = guard + SLACK * float(1 + instance.system.margins.offset.abs().amax())
        self.nodes = 0
        self.witness: Tensor | None = None
        self.heap: list[tuple[float, int, _Domain]] = []
        self.pushed = 0
        self.abandoned: set[int] = set()  # labels with a part that has nothing left to split
        self.least = torch.full((len(classes),), math.inf, dtype=torch.float64, device=classes.device)
        self.lower = torch.full_like(self.least, -math.inf)
        self.coefficient = x.new_zeros(len(classes), *x.shape, dtype=torch.float64)
        self.offset = torch.full_like(self.least, -math.inf)

    @property
    def done(self) -> bool:
        """Nothing is left to do."""
        return self.witness is not None or not self.heap

    @property
    def gap(self) -> float:
        """How far the worst part is from being proven."""
        return self.guard - self.heap[0][0] if self.heap else math.inf

    def plant(self) -> None:
        """alpha-CROWN on the whole box; what stays open is the root of a tree."""
        planes, found = self.instance.root(self.classes, ROOT)
        better = planes.lower > self.lower
        self.lower = torch.where(better, planes.lower, self.lower)
        self.offset = torch.where(better, planes.offset, self.offset)
        self.coefficient[better] = planes.coefficient[better]
        self.heap.clear()
        self.abandoned.clear()
        self.least.fill_(math.inf)
        self._sort_out(found, torch.arange(len(self.classes), device=self.classes.device))

    def tighten(self) -> None:
        """Optimises the hidden bounds and starts again from the root with them."""
        self.instance = self.instance.tightened(ROOT)
        self.plant()

    def grow(self, nodes: int, deadline: float) -> None:
        """Splits the worst parts until `nodes` have been bounded in all or nothing is left."""
        while not self.done and self.nodes < nodes and time.monotonic() < deadline:
            count = min(len(self.heap), max(1, min(COLUMNS, nodes - self.nodes) // 2))
            self._split([heapq.heappop(self.heap)[2] for _ in range(count)])

    def settle(self) -> None:
        """Takes the least bound of all parts for every label that has no open part."""
        open_labels = {domain.label for _, _, domain in self.heap} | self.abandoned
        for place in set(range(len(self.classes))) - open_labels:
            if self.lower[place] <= self.guard < self.least[place] < math.inf:
                self.lower[place] = self.offset[place] = self.least[place]
                self.coefficient[place] = 0.0

    def _split(self, parents: Sequence[_Domain]) -> None:
        """Bounds both sides of the best candidate of every parent."""
        label = torch.tensor([parent.label for parent in parents], device=self.classes.device)
        duals = self._stacked(parents)
        neuron, weight = self._choose(parents, label, duals)
        label = label.repeat_interleave(2)
        found = ascend(
            self.instance.system,
            self._targets(label),
            children(self.instance.system, duals, neuron, weight),
            CHILD,
            goal=self.goal,
        )
        self.nodes += len(label)
        self._sort_out(found, label)

    def _targets(self, label: Tensor) -> Targets:
        return Targets.of(self.instance.system.margins, self.classes[label])

    def _stacked(self, domains: Sequence[_Domain]) -> Duals:
        depth = max(len(domain.split) for domain in domains)
        absent = self.instance.system.neurons
        return Duals(
            alpha=torch.stack([domain.alpha for domain in domains], dim=1).to(self.instance.system.radius.dtype),
            split=torch.stack([pad(d.split, (0, depth - len(d.split)), value=absent) for d in domains], dim=1),
            side=torch.stack([pad(d.side, (0, depth - len(d.side))) for d in domains], dim=1),
            beta=torch.stack([pad(d.beta, (0, depth - len(d.beta))) for d in domains], dim=1),
        )

    def _choose(self, parents: Sequence[_Domain], label: Tensor, duals: Duals) -> tuple[Tensor, Tensor]:
        """The neuron (P,) that each parent is split on, and the coefficient of its output there.

        Every candidate's two children are bounded once with their parent's duals; the best pair wins.
        """
        count = max(len(parent.candidates) for parent in parents)
        index = torch.arange(count)
        neuron = torch.stack([p.candidates[index.clamp(max=len(p.candidates) - 1)] for p in parents])  # (P, count)
        weight = torch.stack([p.weight[index.clamp(max=len(p.weight) - 1)] for p in parents])
        if count > 1:
            wide = torch.arange(len(parents), device=label.device).repeat_interleave(count)
            trial = children(self.instance.system, duals.columns(wide), neuron.flatten(), weight.flatten())
            label = label[wide].repeat_interleave(2)
            bound = torch.cat(
                [
                    ascend(self.instance.system, self._targets(label[some]), trial.columns(some), TRIAL).bound
                    for some in torch.split(torch.arange(len(label), device=label.device), COLUMNS)
                ]
            )
            pair = (bound - self.guard).clamp(max=0).reshape(len(parents), count, 2)
            best = (pair.amin(2) + BETTER_HALF * pair.amax(2)).argmax(1, keepdim=True)
            neuron, weight = neuron.gather(1, best), weight.gather(1, best)
        return neuron[:, 0], weight[:, 0]

    def _sort_out(self, found: Ascent, label: Tensor) -> None:
        """Claims what the ascent has proven, looks for a witness among the minimising points, keeps the rest."""
        bound = found.bound.double()
        ready = torch.nonzero(bound > self.goal).flatten()
        if len(ready):
            rows = self.instance.margins(self.classes[label[ready]])
            bound[ready] = tuned_planes(self.instance, self.instance.system, *rows, found.duals.columns(ready)).lower
        proven = bound > self.guard
        self.least.scatter_reduce_(0, label[proven], bound[proven], "amin")
        left = torch.nonzero(~proven).flatten()
        if len(left):
            self._look(found.point[:, left])
            self._keep(bound, found, label, left)

    def _look(self, point: Tensor) -> None:
        """Runs the network at the minimising points (d, D); one that is not classified correctly is a witness."""
        u = point.T.reshape(-1, *self.x.shape) * self.eps
        logits = self.network(self.x + u)
        true = logits[:, self.instance.label].clone()
        logits[:, self.instance.label] = -math.inf
        fooled = torch.nonzero(logits.amax(1) >= true).flatten()
        if len(fooled):
            self.witness = u[fooled[0]]

    def _keep(self, bound: Tensor, found: Ascent, label: Tensor, left: Tensor) -> None:
        """Puts the columns `left` on the heap, each with its candidates."""
        duals, weight = found.duals.columns(left), found.weight[:, left]
        promise = self.instance.system.upper_offset * torch.where(weight < 0, -weight, MINOR * weight)
        absent = torch.zeros_like(promise[:1])
        promise = torch.cat([promise, absent]).scatter_(0, duals.split, 0.0)[:-1]
        score, best = promise.topk(min(CANDIDATES, len(promise)), dim=0)
        weight = weight.gather(0, best)
        alpha = duals.alpha.to(torch.float16)
        for column, (place, value) in enumerate(zip(label[left].tolist(), bound[left].tolist(), strict=True)):
            given = duals.side[:, column] != 0
            promising = score[:, column] > 0
            if not bool(promising.any()):
                self.abandoned.add(place)
                continue
            domain = _Domain(
                label=place,
                alpha=alpha[:, column].clone(),
                split=duals.split[given, column],
                side=duals.side[given, column],
                beta=duals.beta[given, column],
                candidates=best[promising, column],
                weight=weight[promising, column],
            )
            self.pushed += 1
            heapq.heappush(self.heap, (value, self.pushed, domain))


def _take_turns(trees: Sequence[_Tree], nodes: int, deadline: float) -> None:
    """Works on the trees until all are done, each has bounded `nodes` parts, or the deadline has passed.

    A tree's result depends on its own node budget only, unless the deadline comes first. Within a turn the smallest
    gaps go first. Hidden bounds are optimised for the inputs that the first turn leaves open.
    """
    for tree in trees:
        if time.monotonic() < deadline:
            tree.plant()
    turns = [turn for turn in TURNS if turn < nodes] + [nodes]
    for number, turn in enumerate(turns):
        for tree in sorted(trees, key=lambda tree: tree.gap):
            if tree.done or time.monotonic() >= deadline:
                continue
            if number == min(1, len(turns) - 1):
                tree.tighten()
            tree.grow(turn, deadline)
