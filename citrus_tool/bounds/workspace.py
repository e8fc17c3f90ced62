"""One dual bound and its gradient on a folded system, in buffers that are allocated once, and Adam's step.

The bound's formula stands in `ascent.ascend`; Adam is Kingma and Ba 2015, "Adam: A Method for Stochastic Optimization",
algorithm 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from citrus_tool.bounds.duals import Duals, JointTargets, Targets
from citrus_tool.bounds.fold import Fold, Twins

LEAST_SHARE = 1e-6
"""The least share of a member of a joint functional, of 1 in all: above 0, so that a member can come back."""

TIE = 1e-6
"""Values of twins that differ by less count as equal; float32 rounds values of size 1 by about a tenth of that."""

FIRST_MOMENT, SECOND_MOMENT = 0.9, 0.999
"""Adam's decay rates, as its paper recommends them."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Adam's steps: how many, the first step of slopes, of multipliers and of shares, and the factor after each."""

    steps: int
    alpha_rate: float = 0.1
    beta_rate: float = 0.3
    share_rate: float = 0.2
    decay: float = 0.98


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """The buffers of one ascent, for D targets on U neurons; one row each, and one more for absent splits.

    Everything is computed in them, since fresh memory costs more than the arithmetic. Their states:

    - fresh (`of`): zeros, and zeros stay where nothing is written: rows of absent splits, of `above` without planes.
    - evaluated (`evaluate`): weight, below, above, slope, intercept, nu, at_input and point belong to the duals that
      were evaluated last. `ascent.ascend` reads its result here.
    - climbed (`climb`, from evaluated): z, h and kink belong to these duals too, and the moments have made the step.
      From step 1 on `climb` overwrites the slopes that it is given; `merged` copies those that are to be kept.

    `scratch` holds nothing from one method to the next.

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
        settled: (K, D) slope of each split neuron; fixed.
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
        floor = torch.cat([system.floor, system.floor.new_zeros(1)])

        def zeros() -> Tensor:
            return targets.offset.new_zeros(system.neurons + 1, columns)

        def moments(values: Tensor) -> tuple[Tensor, Tensor]:
            return torch.zeros_like(values), torch.zeros_like(values)

        return Workspace(
            system=system,
            targets=targets,
            weight=zeros(),
            below=zeros(),
            above=zeros(),
            slope=zeros(),
            intercept=zeros(),
            nu=zeros(),
            z=zeros(),
            h=zeros(),
            kink=zeros(),
            scratch=zeros()[:-1],
            alpha_moments=(zeros()[:-1], zeros()[:-1]),
            beta_moments=moments(start.beta),
            share_moments=None if start.share is None else moments(start.share),
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
            if stage.input_planes is None:
                torch.sub(duals.alpha[part], upper_slope, out=slope).mul_(below).add_(upper_slope)
            else:
                upper_offset = stage.input_planes.offset
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
            if stage.input_planes is not None:
                torch.neg(below, out=self.above[part]).add_(1)
                if len(split):
                    self.above.scatter_(0, split, 0.0)
                above = torch.mul(self.above[part], weight, out=self.scratch[part])
                torch.addmm(self.at_input, stage.input_planes.slope[1], above, out=self.at_input)
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
            if stage.input_planes is not None:
                plane = self.scratch[part].zero_()
                h.addcmul_(torch.addmm(plane, stage.input_planes.slope[0], self.point, out=plane), self.above[part])
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
