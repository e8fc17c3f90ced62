"""Bounds whose slopes and multipliers are optimised: alpha-CROWN, and beta-CROWN on parts of a box.

Xu et al. 2021, "Fast and Complete" (alpha-CROWN): the slopes of the lines below open ReLUs are ascended, each
functional with its own. Wang et al. 2021, "Beta-CROWN" (theorem 3.1): on the part of a box where some neurons' inputs
have a given sign, each sign enters as a Lagrange multiplier beta >= 0 at the neuron's input.
Differs from the papers in: (1) the ascent runs on the folded system (bounds/fold.py), where one step is a few small
products, and by hand: the gradient of the dual bound is the relaxed network at the minimising point; (2) the ascent
may be in float32 and certifies nothing. Whatever slopes in [floor, 1] and multipliers >= 0 it finds, the bound that is
claimed is one backward pass of bounds/linear.py with them, in float64 with outward errors (`tuned_planes`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from citrus_tool.bounds.crown import LinearMargins, relax
from citrus_tool.bounds.fold import (
    FOLDABLE,
    Fold,
    Functionals,
    Hull,
    Settled,
    Twins,
    floor_of,
    fold,
    foldable,
    foldable_nodes,
    margin_rows,
)
from citrus_tool.bounds.linear import BACKWARD, Planes, Reading, Rows, concretise, seed, to_input
from citrus_tool.bounds.relaxation import RELAXATIONS, Lines, Relaxation
from citrus_tool.bounds.rounding import OUTWARD_INTERVAL, OWN, SAFETY, exact_products, gamma, widen
from citrus_tool.network import INPUT, Network, Node, Rule, walk
from citrus_tool.threat import Box

TUNED_ROWS = 64
"""Rows of one claimed backward pass: what stays in cache."""

COLUMNS = 128
"""Functionals ascended together: what stays in cache (measured on ConvSmall; twice as many are no faster)."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Adam's steps: how many, the first step of slopes, of multipliers and of shares, and the factor after each."""

    steps: int
    alpha_rate: float = 0.1
    beta_rate: float = 0.3
    share_rate: float = 0.2
    decay: float = 0.98


ROOT = Schedule(steps=20)
"""alpha-CROWN's steps on a whole box."""

LEAST_SHARE = 1e-6
"""Shares stay above this, so that a member can come back."""

TIE = 1e-6
"""Values of twins that differ by less count as equal."""

GRID = 255
"""Slopes that are kept, and those that claims are made with, are multiples of 1 / GRID."""

FIRST_MOMENT, SECOND_MOMENT = 0.9, 0.999
"""Adam's decay rates (Kingma and Ba 2015)."""


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
        return Duals(
            alpha=self.alpha[:, index],
            split=self.split[:, index],
            side=self.side[:, index],
            beta=self.beta[:, index],
            share=None if self.share is None else self.share[:, index],
        )


@dataclass(frozen=True, kw_only=True)
class Ascent:
    """What `ascend` found for D functionals.

    Attributes:
        bound: (D,) the best value of the dual bound, by plain arithmetic.
        duals: the slopes and multipliers that give it.
        weight: (U, D) coefficients of the open neurons' outputs there: what each output counts for.
        point: (d, D) the minimising v in {-1, 0, 1}.
    """

    bound: Tensor
    duals: Duals
    weight: Tensor
    point: Tensor


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
        return Targets(at_hidden=self.at_hidden[:, index], at_input=self.at_input[:, index], offset=self.offset[index])

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


def ascend(
    system: Fold, targets: Targets | JointTargets, start: Duals, schedule: Schedule, *, goal: float = math.inf
) -> Ascent:
    """Maximises the dual bound of every target over slopes, multipliers and shares, from `start`.

    The bound of a target on its part of the box is, for any slopes and multipliers,

        offset + sum weight q + sum nu shift - |L|_1    nu = weight e - side beta,  L = at_input + A^T nu,

    where a neuron is replaced by the line e z + q: below (slope alpha) where its weight is positive, above where it is
    negative, itself where its sign is given; weights follow from the last stage to the first. A plane c v + q above
    (fold.Hull) in place of a line adds weight c to L. The bound's gradient in alpha is weight^+ z, in beta -side z, z
    being the relaxed system's inputs at v = -sign(L); in a member's share it is the member's functional there, and
    shares move on the simplex as softmax of what Adam ascends.

    Stops early when every bound has passed `goal`. The best iterate of each column is returned.
    """
    work = Workspace.of(system, targets, start)
    best = work.evaluate(start)
    kept, current = start, start
    for step in range(schedule.steps):
        if bool((best > goal).all()):
            return work.result(best, kept)
        current = work.climb(current, schedule, step)
        bound = work.evaluate(current)
        better = bound > best
        if step == schedule.steps - 1 and bool(better.all()):
            return work.result(bound, current)
        kept = work.merged(kept, current, better)
        best = torch.maximum(best, bound)
    if schedule.steps:
        best = work.evaluate(kept)
    return work.result(best, kept)


def mean_points(system: Fold, targets: Targets | JointTargets, start: Duals, schedule: Schedule) -> Tensor:
    """(d, D) near-optimal points v of the relaxed problems that `ascend` bounds: means of its minimising points.

    One minimising point is a corner of the box and far from optimal; the mean over the steps tends to an optimum of the
    relaxation (Nedic and Ozdaglar 2009, "Approximate primal solutions and rate analysis for dual subgradient methods").
    """
    work = Workspace.of(system, targets, start)
    work.evaluate(start)
    mean, current = torch.zeros_like(work.point), start
    for step in range(schedule.steps):
        current = work.climb(current, schedule, step)
        work.evaluate(current)
        mean += work.point
    return mean / schedule.steps


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """The buffers of one ascent: one row per neuron and one for absent splits; overwritten by every evaluation.

    Fresh memory costs more than the arithmetic here, so everything is computed in place.

    Attributes:
        weight: (U + 1, D) coefficients of the neurons' outputs.
        below, above: (U + 1, D) 1 where the weight is positive, else 0; 1 where a plane stands for the neuron, else 0.
        slope, intercept: (U + 1, D) e and q of the lines.
        nu: (U + 1, D) coefficients of the neurons' inputs.
        z, h: (U + 1, D) the relaxed system's inputs and outputs at `point`; inputs of twins less those in `kink`.
        kink: (U + 1, D) the twins' inputs where their outputs are least above their lines.
        scratch: (U, D).
        alpha_moments, beta_moments, share_moments: Adam's, (U, D), (K, D) and (M, D) each.
        at_input, point: (d, D) the coefficients L of v, and the minimising v.
        settled: (K, D) slope of each split neuron.
        meeting: of the system's twins.
    """

    system: Fold
    targets: Targets | JointTargets
    weight: Tensor
    below: Tensor
    above: Tensor
    slope: Tensor
    intercept: Tensor
    nu: Tensor
    z: Tensor
    h: Tensor
    kink: Tensor
    scratch: Tensor
    alpha_moments: tuple[Tensor, Tensor]
    beta_moments: tuple[Tensor, Tensor]
    share_moments: tuple[Tensor, Tensor] | None
    at_input: Tensor
    point: Tensor
    settled: Tensor
    meeting: _Meeting | None

    @staticmethod
    def of(system: Fold, targets: Targets | JointTargets, start: Duals) -> Workspace:
        """Buffers for these targets and for duals with `start`'s splits."""
        columns = targets.offset.shape[-1]
        rows = [targets.offset.new_zeros(system.neurons + 1, columns) for _ in range(12)]
        floor = torch.cat([system.floor, system.floor.new_zeros(1)])
        return Workspace(
            system=system,
            targets=targets,
            weight=rows[0],
            below=rows[1],
            above=rows[10],
            slope=rows[2],
            intercept=rows[3],
            nu=rows[4],
            z=rows[5],
            h=rows[6],
            kink=rows[11],
            scratch=rows[7][:-1],
            alpha_moments=(rows[8][:-1], rows[9][:-1]),
            beta_moments=(torch.zeros_like(start.beta), torch.zeros_like(start.beta)),
            share_moments=None
            if start.share is None
            else (torch.zeros_like(start.share), torch.zeros_like(start.share)),
            at_input=targets.at_input.new_empty(targets.at_input.shape[-2:]),
            point=targets.at_input.new_empty(targets.at_input.shape[-2:]),
            settled=torch.where(start.side > 0, torch.ones_like(start.side), floor[start.split]),
            meeting=None if system.twins is None else _Meeting.of(system.twins, start, system.shift),
        )

    def evaluate(self, duals: Duals) -> Tensor:
        """The bounds (D,); leaves weights, lines and the minimising point in the buffers."""
        system, split = self.system, duals.split
        force = -duals.side * duals.beta
        bound = self.targets.mix(duals.share, self.weight[:-1], self.at_input)
        for stage in reversed(system.stages):
            part = stage.range
            weight, below, slope, intercept, nu = (
                rows[part] for rows in (self.weight, self.below, self.slope, self.intercept, self.nu)
            )
            upper_slope, upper_offset = system.upper_slope[part], system.upper_offset[part]
            torch.sign(weight, out=below).clamp_(min=0)
            if stage.hull is None:
                torch.sub(duals.alpha[part], upper_slope, out=slope).mul_(below).add_(upper_slope)
            else:
                upper_offset = stage.hull.offset
                torch.mul(duals.alpha[part], below, out=slope)
            torch.addcmul(upper_offset, below, upper_offset, value=-1, out=intercept)
            if len(split):
                self.slope.scatter_(0, split, self.settled)
                self.intercept.scatter_(0, split, 0.0)
            torch.mul(weight, slope, out=nu)
            if len(split):
                self.nu.scatter_add_(0, split, force)  # the other stages' rows of nu are stale or yet to come
            bound += (system.shift[part].T @ nu)[0]
            torch.addmm(self.at_input, stage.at_input[1], nu, out=self.at_input)
            if stage.hull is not None:
                torch.neg(below, out=self.above[part]).add_(1)
                if len(split):
                    self.above.scatter_(0, split, 0.0)
                above = torch.mul(self.above[part], weight, out=self.scratch[part])
                torch.addmm(self.at_input, stage.hull.slope[1], above, out=self.at_input)
            if stage.start > stage.base:
                earlier = self.weight[stage.earlier]
                torch.addmm(earlier, stage.at_hidden[1], nu, out=earlier)
        torch.sign(self.at_input, out=self.point).neg_()
        if self.meeting is not None:
            torch.mul(self.weight, self.slope, out=self.nu)  # rows of later stages had forces added more than once
            if len(split):
                self.nu.scatter_add_(0, split, force)
            bound += self.meeting.least(self.weight, self.nu)
            self.intercept[:-1].mul_(self.meeting.twins.single)
        torch.mul(self.weight[:-1], self.intercept[:-1], out=self.scratch)
        reach = torch.linalg.vector_norm(self.at_input, ord=1, dim=0)
        bound += self.scratch.sum(0) - reach
        return bound

    def climb(self, duals: Duals, schedule: Schedule, step: int) -> Duals:
        """One step of Adam from the duals that were evaluated last."""
        kink = None if self.meeting is None else self.meeting.kinks(self.kink)
        for stage in self.system.stages:
            part = stage.range
            z = self.z[part].copy_(self.system.shift[part].expand(-1, self.z.shape[1]))
            torch.addmm(z, stage.at_input[0], self.point, out=z)
            if stage.start > stage.base:
                torch.addmm(z, stage.at_hidden[0], self.h[stage.earlier], out=z)
            if kink is not None and stage.start == stage.base:
                z -= kink[part]
            h = torch.addcmul(self.intercept[part], self.slope[part], z, out=self.h[part])
            if kink is not None and stage.start == stage.base:
                h += torch.maximum(kink[part], self.system.floor[part, None] * kink[part])
            if stage.hull is not None:
                plane = self.scratch[part].zero_()
                h.addcmul_(torch.addmm(plane, stage.hull.slope[0], self.point, out=plane), self.above[part])
        rate = schedule.decay**step
        if isinstance(self.targets, JointTargets):
            duals = self._shifted(duals, self.targets.values(self.point, self.h[:-1]), schedule.share_rate * rate, step)
        gradient = torch.mul(self.weight[:-1], self.z[:-1], out=self.scratch).mul_(self.below[:-1])
        alpha = duals.alpha.clone() if step == 0 else duals.alpha
        change = adam(gradient, self.alpha_moments, step)
        torch.maximum(alpha.add_(change, alpha=schedule.alpha_rate * rate), self.system.floor[:, None], out=alpha)
        alpha.clamp_(max=1)
        if not len(duals.split):
            return replace(duals, alpha=alpha)
        push = adam(-duals.side * self.z.gather(0, duals.split), self.beta_moments, step)
        return replace(duals, alpha=alpha, beta=(duals.beta + schedule.beta_rate * rate * push).clamp_(min=0))

    def _shifted(self, duals: Duals, values: Tensor, rate: float, step: int) -> Duals:
        """One step of the shares, whose gradient is `values` (M, D)."""
        assert duals.share is not None
        assert self.share_moments is not None
        gradient = duals.share * (values - (duals.share * values).sum(0))
        moved = duals.share.log() + rate * adam(gradient, self.share_moments, step)
        return replace(duals, share=moved.softmax(0).clamp(min=LEAST_SHARE))

    def merged(self, old: Duals, new: Duals, better: Tensor) -> Duals:
        """`new` in the columns that are `better` (D,), else `old`."""
        if bool(better.all()):
            return replace(new, alpha=new.alpha.clone())
        alpha = torch.lerp(old.alpha, new.alpha, better.to(old.alpha.dtype))
        share = None
        if old.share is not None and new.share is not None:
            share = torch.where(better, new.share, old.share)
        return replace(old, alpha=alpha, beta=torch.where(better, new.beta, old.beta), share=share)

    def result(self, bound: Tensor, duals: Duals) -> Ascent:
        """What the last evaluation, of `duals`, left in the buffers, with bounds (D,)."""
        return Ascent(bound=bound, duals=duals, weight=self.weight[:-1], point=self.point)


@dataclass(frozen=True, kw_only=True)
class _Meeting:
    """How far twins' outputs are above their lines at least, for D functionals; overwritten by every `least`.

    Attributes:
        value: (P, C, D) how far at each of the points.
        excluded: (E,) flat indices of those that the signs of D parts of the box rule out.
        best, place: (C, D) the least, and at which point.
    """

    twins: Twins
    value: Tensor
    excluded: Tensor
    best: Tensor
    place: Tensor

    @staticmethod
    def of(twins: Twins, duals: Duals, shift: Tensor) -> _Meeting:
        """For parts of the box with these signs; `shift` (U, 1) of the system."""
        points, count = twins.t.shape
        columns = duals.split.shape[1]
        place = twins.place[duals.split]
        t = torch.cat([twins.t, shift.new_zeros(points, 1)], dim=1)[:, place]
        zero = -torch.cat([shift[:, 0], shift.new_zeros(1)])[duals.split]
        beyond = torch.where(duals.side > 0, t < zero, t > zero) & (place < count) & (duals.side != 0)
        point, split, column = beyond.nonzero(as_tuple=True)
        return _Meeting(
            twins=twins,
            value=shift.new_empty(points, count, columns),
            excluded=(point * count + place[split, column]) * columns + column,
            best=shift.new_empty(count, columns),
            place=place.new_empty(count, columns),
        )

    def least(self, weight: Tensor, nu: Tensor) -> Tensor:
        """(D,) sums over all twins, for coefficients of outputs and of inputs (U + 1, D); +inf where no u is left."""
        twins, value = self.twins, self.value.zero_()
        shape = (*twins.row.shape, -1)
        output, line = (rows.index_select(0, twins.row.flatten()).reshape(shape) for rows in (weight, nu))
        for point, member in twins.terms:
            value[point].addcmul_(output[member], twins.h[point, member])
            value[point].addcmul_(line[member], twins.z[point, member], value=-1)
        value.view(-1).index_fill_(0, self.excluded, math.inf)
        torch.min(value, dim=0, out=(self.best, self.place))
        return self.best.sum(0)

    def kinks(self, out: Tensor) -> Tensor:
        """Writes the twins' inputs at those points into `out` (U + 1, D), which is 0 elsewhere.

        Of several points a member's own zero comes first: where its multiplier is 0, only that tells which way to go.
        """
        for member, row in enumerate(self.twins.row):
            own = self.value[member + 2] <= self.best + TIE
            z = self.twins.z[:, member, :, 0].T.gather(1, self.place)
            out.index_copy_(0, row, z.masked_fill_(own, 0.0))
        out[-1] = 0
        return out


def adam(gradient: Tensor, moments: tuple[Tensor, Tensor], step: int) -> Tensor:
    """Adam's direction (any shape) for an ascent, of `moments`' and `gradient`'s shape; overwrites `gradient`."""
    first, second = moments
    first.lerp_(gradient, 1 - FIRST_MOMENT)
    second.mul_(SECOND_MOMENT).addcmul_(gradient, gradient, value=1 - SECOND_MOMENT)
    scale = math.sqrt(1 - SECOND_MOMENT ** (step + 1)) / (1 - FIRST_MOMENT ** (step + 1))
    torch.sqrt(second, out=gradient).add_(1e-8).reciprocal_()
    return gradient.mul_(first).mul_(scale)


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
class Step:
    """How the bounds of one stage's neurons were optimised, for a proof.

    Attributes:
        node: the stage's.  entry: (n,) its open neurons then.
        alpha: (2 n, U) uint8 in units of 1 / GRID: slopes of the neurons of earlier stages, for the neurons' lower
            bounds, then for their upper ones.
    """

    node: str
    entry: Tensor
    alpha: Tensor


@dataclass(frozen=True, kw_only=True)
class View:
    """What a proof says of an instance: its neurons and choices, without the matrices, which are far larger.

    Attributes:
        nodes: the network's nodes in FOLDABLE, in topological order.
        open: node -> (U,) flat indices of its open neurons, in the order of the instance's stages.
        hull: (U, d) uint8 shares of the planes above the first stage's neurons (fold.Hull); None without planes.
        steps: how the bounds of hidden neurons were optimised, in order.
    """

    nodes: tuple[str, ...]
    open: Mapping[str, Tensor]
    hull: Tensor | None
    steps: tuple[Step, ...]

    @property
    def neurons(self) -> int:
        """Open neurons of all stages."""
        return sum(map(len, self.open.values()))


@dataclass(frozen=True, kw_only=True)
class Instance:
    """One input: the network over its box, as `crown.relax` reads it, and folded.

    Attributes:
        network: in float64.
        boxes, relaxations, errors: of a batch of 1.
        label: its true class.
        system: the folded system of these boxes.
        signs: nonlinear node -> (neurons,) +1 where its input is known to be >= 0 on the part of the box that the
            instance stands for, -1: <= 0, 0: not known. Boxes and bounds hold on that part only; empty: the whole box.
        steps: how the bounds of hidden neurons were optimised, in order.
    """

    network: Network
    boxes: Mapping[str, Box]
    relaxations: Mapping[str, Relaxation]
    errors: Mapping[str, Tensor]
    label: int
    system: Fold
    signs: Mapping[str, Tensor] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()

    @cached_property
    def view(self) -> View:
        """The instance as proofs know it."""
        stages = self.system.stages
        hulls = [stage.hull.share for stage in stages if stage.hull is not None]
        return View(
            nodes=tuple(node.name for node in foldable_nodes(self.network)),
            open={stage.node: stage.entry for stage in stages},
            hull=hulls[0] if hulls else None,
            steps=self.steps,
        )

    @cached_property
    def origin(self) -> Box:
        """The exact input (1, ...) of the first nonlinear node without a perturbation, enclosed."""
        first = foldable_nodes(self.network)[0]
        centre = self.boxes[INPUT].centre
        values: dict[str, Box] = {}
        point = Box(centre=centre, radius=torch.zeros_like(centre))
        walk(self.network, OUTWARD_INTERVAL, point, record=values)
        return widen({INPUT: point, **values}[first.inputs[0]])

    @staticmethod
    def of(
        network: Network,
        boxes: Mapping[str, Box],
        relaxations: Mapping[str, Relaxation],
        errors: Mapping[str, Tensor],
        label: int,
        number: int,
    ) -> Instance:
        """Input `number` of a batch that `crown.relax` has read; `network` must be `foldable`."""
        part = slice(number, number + 1)
        own = {name: Box(centre=box.centre[part], radius=box.radius[part]) for name, box in boxes.items()}
        lines = {name: relaxation.select(part) for name, relaxation in relaxations.items()}
        return Instance(
            network=network,
            boxes=own,
            relaxations=lines,
            errors={name: error[part] for name, error in errors.items()},
            label=label,
            system=fold(network, own, lines, label),
        )

    def margins(self, classes: Tensor) -> tuple[str, Rows]:
        """Rows f_label - f_c at the output for c in `classes`, for `tuned_planes`."""
        return self.network.output_name, margin_rows(self.network, self.label, classes, self.boxes[INPUT])

    def root(self, classes: Tensor, schedule: Schedule) -> tuple[Planes, Ascent]:
        """alpha-CROWN on the whole box: planes claimed of the margins over `classes`, and the ascent behind them.

        Claims are made with the ascent's duals `on_grid`.
        """
        start = self.start(self.system, len(classes))
        found = ascend(self.system, Targets.of(self.system.margins, classes), start, schedule)
        return tuned_planes(self, self.system, *self.margins(classes), found.duals.on_grid()), found

    def start(self, system: Fold, count: int) -> Duals:
        """Where the ascent of `count` functionals starts: CROWN's slopes, the known signs with multipliers 0."""
        duals = Duals.start(system, count)
        split, side = [duals.split[:, 0]], [duals.side[:, 0]]
        for stage in system.stages:
            if stage.node in self.signs:
                known = self.signs[stage.node][stage.entry]
                here = known.nonzero().flatten()
                split.append(here + stage.start)
                side.append(known[here].to(duals.side.dtype))
        given = torch.cat(split)[:, None].expand(-1, count)
        return replace(
            duals, split=given, side=torch.cat(side)[:, None].expand(-1, count), beta=duals.alpha.new_zeros(given.shape)
        )

    def split(self, neuron: int, schedule: Schedule) -> tuple[Instance, Instance]:
        """The parts of the box where the input of open neuron `neuron` is >= 0 and <= 0.

        The bounds of the open neurons in later stages are optimised on each.
        """
        stage = next(stage for stage in self.system.stages if stage.start <= neuron < stage.stop)
        size = self.boxes[stage.source].centre.numel()
        known = self.signs.get(stage.node, torch.zeros(size, device=stage.entry.device))
        found = []
        for side in (1.0, -1.0):
            signs = known.clone()
            signs[stage.entry[neuron - stage.start]] = side
            part = replace(self, signs={**self.signs, stage.node: signs})
            found.append(part.tightened(schedule, after=stage.node))
        return found[0], found[1]

    def tightened(self, schedule: Schedule, *, after: str | None = None) -> Instance:
        """The instance with the bounds of its open neurons optimised, from the first stage on, or behind node `after`.

        A stage's neurons are bounded from both sides with slopes of their own on the boxes of the stages before.
        """
        found, started = self, after is None
        for node in foldable_nodes(self.network):
            if not started:
                started = node.name == after
                continue
            number = next((i for i, stage in enumerate(found.system.stages) if stage.node == node.name), None)
            if number:  # the inputs of the first stage are bounded exactly
                found = found._tightened(node, number, schedule)
        return found

    def _tightened(self, node: Node, number: int, schedule: Schedule) -> Instance:
        stage, before = self.system.stages[number], self.system.before(number)
        targets = Targets.both_sides(stage.inputs)
        sign = torch.ones(2 * len(stage.entry), dtype=torch.float64, device=stage.entry.device)
        sign[len(stage.entry) :] = -1.0
        entry = stage.entry.repeat(2)
        lower = torch.empty_like(sign)
        alpha = sign.new_empty(len(sign), before.neurons, dtype=torch.uint8)
        for part in _parts(len(sign), COLUMNS):
            columns = targets.columns(part)
            found = ascend(before, columns, self.start(before, len(columns.offset)), schedule)
            duals = found.duals.on_grid()
            alpha[part] = (duals.alpha.T * GRID).round().to(torch.uint8)
            reading = Reading(network=self.network, relaxations={}, errors={})
            start, rows = seed(reading, stage.source, torch.zeros_like(entry[part]), entry[part], sign[part])
            lower[part] = tuned_planes(self, before, start, rows, duals).lower
        known = self.boxes[stage.source]
        low, high = known.lower.flatten().clone(), known.upper.flatten().clone()
        low[stage.entry] = torch.maximum(low[stage.entry], lower[: len(stage.entry)])
        high[stage.entry] = torch.minimum(high[stage.entry], -lower[len(stage.entry) :])
        box = widen(Box.from_bounds(low.reshape(known.centre.shape), high.reshape(known.centre.shape)))
        boxes = {**self.boxes, stage.source: box}
        relaxations = {**self.relaxations, node.name: RELAXATIONS[type(node.layer)](node.layer, widen(box))}
        system = fold(self.network, boxes, relaxations, self.label, like=self.system, dtype=self.system.radius.dtype)
        steps = (*self.steps, Step(node=node.name, entry=stage.entry, alpha=alpha))
        return replace(self, boxes=boxes, relaxations=relaxations, system=system, steps=steps)


def optimise_margins(
    network: Network, box: Box, labels: Tensor, known: LinearMargins, *, schedule: Schedule = ROOT, tighten: bool = True
) -> LinearMargins:
    """alpha-CROWN margins of a batch of boxes, valid in real arithmetic (docs/soundness.md).

    Args:
        network: in float64, evaluation mode.
        box, labels: one box and class index (n,) an input, as `crown.crown` takes them.
        known: what `crown.crown` found; labels that it proves are left alone, and no label's bound gets worse.
        tighten: optimises the bounds of hidden neurons too.

    A network that is not `foldable` keeps `known`.
    """
    if not foldable(network):
        return known
    lower, coefficient, offset = known.lower.clone(), known.coefficient.clone(), known.offset.clone()
    with torch.no_grad(), exact_products():
        boxes, relaxations, errors = relax(network, box)
        for number, label in enumerate(labels.tolist()):
            classes = torch.nonzero(~(known.lower[number] > 0)).flatten()
            if not len(classes):
                continue
            instance = Instance.of(network, boxes, relaxations, errors, label, number)
            planes, _ = instance.root(classes, schedule)
            if tighten and not bool((planes.lower > 0).all()):
                planes, _ = instance.tightened(schedule).root(classes, schedule)
            better = planes.lower > lower[number, classes]
            lower[number, classes[better]] = planes.lower[better]
            coefficient[number, classes[better]] = planes.coefficient[better]
            offset[number, classes[better]] = planes.offset[better]
    return LinearMargins(lower=lower, coefficient=coefficient, offset=offset)


def _parts(count: int, step: int) -> Iterator[slice]:
    return (slice(first, min(first + step, count)) for first in range(0, count, step))


@dataclass(frozen=True, kw_only=True)
class _Tuning:
    """One node's lines per row: decided neurons by `slope` and `spread` (1, *shape), open ones by columns (R, U_l)."""

    slope: Tensor
    spread: Tensor
    entry: Tensor
    lower_slope: Tensor
    upper_slope: Tensor
    upper_offset: Tensor
    force: Tensor
    hull: tuple[Hull, Tensor] | None  # and (R, U_l) 1 where its plane stands above the neuron
    apart: Tensor | None  # (C,) neurons whose outputs less their lines are left to the caller


@dataclass(frozen=True, kw_only=True)
class Apart:
    """What planes leave out: the sum over C neurons of weight h - slope z; (R, C) each."""

    weight: Tensor
    slope: Tensor


def tuned_planes(instance: Instance, system: Fold, start: str, rows: Rows, duals: Duals) -> Planes:
    """Claimed bounds (float64, outward) of rows of one input with the slopes and multipliers of each row's column.

    On the part of the box where the signs in `duals` hold, target_r >= <coefficient_r, u> + offset_r >= lower_r in real
    arithmetic, whatever the duals are: slopes are clamped into [floor, 1] and multipliers to >= 0. Columns without
    splits hold on the whole box. A multiplier adds a coefficient to the row, so it also counts in the norm by which
    rounding errors are scaled (docs/soundness.md).

    Args:
        system: the fold that `duals` refer to, of the instance's boxes; stages that it lacks keep CROWN's lines.
        start: the node where `rows` (R, dense or windows, all of sample 0) stand.
    """
    return planes_apart(instance, system, start, rows, duals, None)[0]


def planes_apart(
    instance: Instance, system: Fold, start: str, rows: Rows, duals: Duals, neurons: Tensor | None
) -> tuple[Planes, Apart]:
    """As `tuned_planes`, but of the target less what `neurons` (C,) of the first stage leave above their lines.

    Those lines have no offset, and any slope: they need not lie below the outputs.
    """
    box = instance.boxes[INPUT]
    left: list[Apart] = []
    reading = Reading(network=instance.network, relaxations=instance.relaxations, errors=instance.errors)
    parts = []
    for part in _parts(len(rows.offset), TUNED_ROWS):
        some = replace(
            rows,
            sample=rows.sample[part],
            coefficient=rows.coefficient[part],
            offset=rows.offset[part],
            norm=rows.norm[part],
            window=None if rows.window is None else replace(rows.window, position=rows.window.position[part]),
        )
        tunings, below = _tunings(instance, system, duals.columns(part), neurons), list[tuple[Hull, Tensor]]()
        tuned = partial(_tuned, tunings, below, left)
        rules: dict[type[nn.Module], Rule] = {**BACKWARD, **dict.fromkeys(FOLDABLE, tuned)}
        planes = concretise(reading, to_input(reading, some, start=start, rules=rules).dense(), box)
        for hull, weight in below:
            planes = _with_hull(planes, hull, weight, box)
        parts.append(planes)
    whole = Planes(
        coefficient=torch.cat([planes.coefficient for planes in parts]),
        offset=torch.cat([planes.offset for planes in parts]),
        lower=torch.cat([planes.lower for planes in parts]),
    )
    none = whole.offset.new_zeros(len(whole.offset), 0)
    return whole, Apart(
        weight=torch.cat([one.weight for one in left]) if left else none,
        slope=torch.cat([one.slope for one in left]) if left else none,
    )


def least_above(planes: Planes, slope: Tensor, box: Box) -> Tensor:
    """(R,) b with target_r >= <slope_r, u> + b_r wherever the plane holds in the box; `slope` (R, *input_shape)."""
    excess = (planes.coefficient - slope).flatten(1).abs()
    reach = excess @ box.radius.flatten()
    error = SAFETY * gamma(excess.shape[1] + OWN, reach.dtype) * (reach + planes.offset.abs())
    return planes.offset - reach - error


def least_sum(parts: Sequence[Planes], box: Box) -> Tensor:
    """(R,) lower bounds, over the box, of sums of targets of which each part bounds one; outward.

    All parts are planes in the same perturbation, |u| <= radius of `box`.
    """
    offset = torch.stack([part.offset for part in parts])
    coefficient = torch.stack([part.coefficient for part in parts])
    radius = box.radius.flatten()
    size = offset.abs().sum(0) + coefficient.abs().sum(0).flatten(1) @ radius
    error = SAFETY * gamma(len(parts) + OWN, size.dtype) * size
    whole = Planes(coefficient=coefficient.sum(0), offset=offset.sum(0) - error, lower=error)
    return least_above(whole, torch.zeros_like(whole.coefficient), box)


def _with_hull(planes: Planes, hull: Hull, weight: Tensor, box: Box) -> Planes:
    """Planes plus weight (R, U), <= 0, times the slopes of the hull, whose offsets they hold already; outward."""
    extra = (hull.claimed_slope @ weight.T).T.reshape(planes.coefficient.shape)
    size = planes.coefficient.flatten(1).abs() @ box.radius.flatten() - weight @ hull.claimed_size
    error = SAFETY * gamma(weight.shape[1] + OWN, size.dtype) * size
    whole = Planes(coefficient=planes.coefficient + extra, offset=planes.offset - error, lower=error)
    return replace(whole, lower=least_above(whole, torch.zeros_like(whole.coefficient), box))


def _tunings(instance: Instance, system: Fold, duals: Duals, apart: Tensor | None) -> dict[str, _Tuning]:
    nodes = {node.name: node for node in instance.network.nodes}
    split = duals.split.T
    tunings = {}
    for stage in system.stages:
        lines = instance.relaxations[stage.node]
        assert isinstance(lines, Lines)
        floor = floor_of(nodes[stage.node].layer)
        alpha = duals.alpha[stage.range].T.double().clamp(floor, 1.0)
        hull = stage.hull
        upper_slope = lines.upper_slope.flatten()[stage.entry] if hull is None else torch.zeros_like(alpha[0])
        upper_offset = lines.upper_offset.flatten()[stage.entry] if hull is None else hull.claimed_offset
        below, plane = _with_spare(alpha), _with_spare(torch.ones_like(alpha))
        above, offset = _with_spare(upper_slope.expand_as(alpha)), _with_spare(upper_offset.expand_as(alpha))
        force = torch.zeros_like(below)
        here = (split >= stage.start) & (split < stage.stop)
        index = torch.where(here, split - stage.start, len(stage.entry))
        side = duals.side.T.double()
        settled = torch.where(side > 0, torch.ones_like(side), floor)
        below.scatter_(1, index, settled)
        above.scatter_(1, index, settled)
        offset.scatter_(1, index, 0.0)
        plane.scatter_(1, index, 0.0)
        force.scatter_add_(1, index, -side.sign() * duals.beta.T.double().clamp(min=0))
        rest = Settled.of(nodes[stage.node], instance.boxes[stage.source])
        tunings[stage.node] = _Tuning(
            slope=rest.slope.flatten(1),
            spread=rest.spread.flatten(1).masked_fill(rest.open.flatten(1), 0.0),
            entry=stage.entry,
            lower_slope=below[:, :-1],
            upper_slope=above[:, :-1],
            upper_offset=offset[:, :-1],
            force=force[:, :-1],
            hull=None if hull is None else (hull, plane[:, :-1]),
            apart=apart if stage.start == 0 else None,
        )
    return tunings


def _with_spare(values: Tensor) -> Tensor:
    """A copy (R, U) with a last column that absent splits may overwrite."""
    return torch.cat([values, torch.zeros_like(values[:, :1])], dim=1)


def _tuned(
    tunings: Mapping[str, _Tuning],
    below: list[tuple[Hull, Tensor]],
    apart: list[Apart],
    reading: Reading,
    layer: nn.Module,
    node: Node,
    rows: Rows,
) -> tuple[Rows]:
    """Back through a nonlinear node with each row's own lines and multipliers.

    `below` gets a hull and the coefficients (R, U_l) of the neurons below its planes, which leave the row here, `apart`
    what neurons leave above their lines.
    """
    own = tunings.get(node.name)
    if own is None:  # every neuron is decided, or the node lies after the system
        decided: tuple[Rows] = BACKWARD[type(layer)](reading, layer, node, rows)
        return decided
    rows = rows.dense()
    norm = rows.norm + own.force.abs().sum(1)
    flat = rows.coefficient.flatten(1)
    weight = flat.index_select(1, own.entry)
    negative = weight.clamp(max=0)
    if own.hull is not None:
        below.append((own.hull[0], negative * own.hull[1]))
    top = negative * own.upper_offset
    passed = weight * own.lower_slope + negative * (own.upper_slope - own.lower_slope) + own.force
    if own.apart is not None:
        top = top.index_fill(1, own.apart, 0.0)
        apart.append(Apart(weight=weight[:, own.apart], slope=passed[:, own.apart]))
    offset = reading.settle(node, replace(rows, norm=norm)) + top.sum(1)
    offset = offset + flat.clamp(max=0) @ own.spread[0]
    coefficient = (flat * own.slope).index_copy_(1, own.entry, passed)
    return (replace(rows, coefficient=coefficient.reshape(rows.coefficient.shape), offset=offset, norm=norm),)
