"""The checker's bounds: one input over its box, in float64 with outward errors, by duals that are given to it.

Over a box most ReLUs are identity or zero. The inputs z of the others, the neurons, are affine in the perturbation
v = u / radius, |v| <= 1, and in the neurons' outputs h:   z = A v + B h + b, B strictly lower triangular by layers.
A functional of (v, h) is bounded from below by replacing each h by a line, from the last layer to the first: where its
coefficient is positive by a line below of any slope in [floor, 1], where it is negative by a line above. Where the sign
of z is given (a part of the box), h is a multiple of z, and any beta >= 0 times the sign's |z| may be subtracted
(Zhang et al. 2018, theorem 3.2; Wang et al. 2021, theorem 3.1). What several inputs' neurons of the first ReLU leave
above their lines is bounded for all of them at once (`SharedNeurons`). Nothing is optimised here.

What a run in float32 may err by at each entry of each node (intervals.py) is one more variable e, |e| <= 1, of its own.

Rounding: a sum of n products is off by at most gamma(n) = n 2^-52 (twice what Higham 2002, section 3.1, says, which
pays for the roundings of the error itself) times the sum of their absolute values. docs/proof-format.md has the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from citrus_tool.checker.graph import Floats, Graph, Index, Matrix, Relu, compact
from citrus_tool.checker.intervals import WIDER, Intervals, against, dense, gamma

ROWS: Final = 512
"""Functionals carried through the network together: bounds the memory of their coefficients."""


@dataclass(frozen=True, kw_only=True)
class AffineForms:
    """R functionals: at_v (R, d) v + at_e (R, E) e + at_h (R, U) h + offset (R,), true up to slack (R,).

    e, |e| <= 1: each entry's error in a run in float32, over the most that it can be, node after node.
    """

    at_v: Matrix
    at_e: Matrix
    at_h: Floats
    offset: Floats
    slack: Floats

    def pick(self, index: Index | NDArray[np.bool_]) -> AffineForms:
        """Some of the functionals."""
        parts = (self.at_v, self.at_e, self.at_h, self.offset, self.slack)
        at_v, at_e, at_h, offset, slack = (part[index] for part in parts)
        return AffineForms(at_v=at_v, at_e=at_e, at_h=at_h, offset=offset, slack=slack)

    def times(self, factor: Floats) -> AffineForms:
        """Every functional times a number of its own (roundings are paid by `Execution.plane`)."""
        size = np.abs(factor) * (1 + WIDER)
        at_v, at_e = (_rows_times(part, factor) for part in (self.at_v, self.at_e))
        at_h, offset = self.at_h * factor[:, None], self.offset * factor
        return AffineForms(at_v=at_v, at_e=at_e, at_h=at_h, offset=offset, slack=self.slack * size)


@dataclass(frozen=True, kw_only=True)
class NeuronLines:
    """Bounds of the U neurons' inputs, and their lines: below slope `low`, above `up` z + `top`.

    All (U,). `chord`: the line above is the chord, else it is parallel to the one below. `above`: planes that stand in
    place of the lines above.
    """

    lower: Floats
    upper: Floats
    chord: NDArray[np.bool_]
    low: Floats
    up: Floats
    top: Floats
    above: Above | None = None


@dataclass(frozen=True, kw_only=True)
class Above:
    """Planes slope v + offset, (n, d) and (n,), above the n neurons of the first ReLU that are in `given` (n,)."""

    given: NDArray[np.bool_]
    slope: Floats
    offset: Floats


@dataclass(frozen=True, kw_only=True)
class Signs:
    """Signs that are given: of `neuron` in row `row`, `side` +1 or -1, with the multiplier beta >= 0."""

    row: Index
    neuron: Index
    side: Floats
    beta: Floats


@dataclass(frozen=True, kw_only=True)
class ReluNeurons:
    """The neurons start to stop, of one ReLU: flat positions, and their inputs as functionals."""

    start: int
    stop: int
    entry: Index
    rows: AffineForms  # at_h has `start` columns


class Execution(Intervals):
    """The network over one box (n = 1), with CROWN's bounds of hidden values.

    Attributes:
        stages: by the ReLU's number in the file.
        floor, known_lower, known_upper: (U,) of the neurons.
        lines: CROWN's.
    """

    def __init__(self, graph: Graph, x: Floats, radius: float, forced: Mapping[int, Index], arithmetic: str) -> None:
        """`x` (d,) pixels; `forced`: by ReLU, entries that are neurons whatever their bounds say."""
        self.x, self.forced = x, forced
        self.stages: dict[int, ReluNeurons] = {}
        self._number: dict[int, int] = {}  # of a node, the number of its ReLU
        self._slope: dict[int, Floats] = {}
        self.floor = self.known_lower = self.known_upper = self._cost = np.zeros(0)
        super().__init__(graph, x[:, None], radius, arithmetic)
        self.lines = self._crown()

    def _refined(self, node: int, layer: Relu) -> tuple[Floats, Floats]:
        number = self._number[node] = len(self._number)
        lower, upper = self.lower[layer.source][:, 0].copy(), self.upper[layer.source][:, 0].copy()
        given = self.forced.get(number, np.zeros(0, dtype=np.int64))
        self._slope[node] = self._neurons(number, layer, lower, upper, given)
        return lower[:, None], upper[:, None]

    def _neurons(self, number: int, layer: Relu, lower: Floats, upper: Floats, given: Index) -> Floats:
        """Makes neurons of the entries that CROWN's bounds leave open; the slopes of the others, 0 at neurons.

        Improves the bounds in place.
        """
        wanted = ~((lower >= 0) | (upper <= 0))
        wanted[given] = True
        if not layer.floor and self.graph.users[layer.source] == 1:
            self.errors[layer.source][~wanted & (upper <= 0)] = 0.0
        entry, lines, parts = np.flatnonzero(wanted), self._crown(), []
        for here in np.split(entry, range(ROWS, len(entry), ROWS)):
            parts.append(self._fold(layer.source, _units(here, len(lower))))
            lower[here] = np.maximum(lower[here], self.least(parts[-1], lines))
            upper[here] = np.minimum(upper[here], -self.least(parts[-1].times(np.full(len(here), -1.0)), lines))
        wanted = ~((lower >= 0) | (upper <= 0))
        wanted[given] = True
        kept = entry[wanted[entry]]
        if len(kept):
            rows = _stacked(parts).pick(wanted[entry])
            start = len(self.floor)
            self.stages[number] = ReluNeurons(start=start, stop=start + len(kept), entry=kept, rows=rows)
            terms = _reach(rows.at_v) + np.abs(rows.at_h) @ self.largest + np.abs(rows.offset) + rows.slack
            terms += _reach(rows.at_e)
            terms += np.maximum(np.abs(lower[kept]), np.abs(upper[kept]))
            cost = rows.slack + 8 * gamma(len(self.x) + rows.at_e.shape[1] + start + len(kept) + 64) * terms
            self._cost = np.concatenate([self._cost, cost])
            self.known_lower = np.concatenate([self.known_lower, lower[kept]])
            self.known_upper = np.concatenate([self.known_upper, upper[kept]])
            self.floor = np.concatenate([self.floor, np.full(len(kept), layer.floor)])
        return np.where(wanted, 0.0, np.where(lower >= 0, 1.0, layer.floor))

    def _crown(self) -> NeuronLines:
        return self.lines_of(self.known_lower, self.known_upper, np.ones(len(self.floor), dtype=np.bool_))

    @property
    def largest(self) -> Floats:
        """(U,) the largest |z| of the neurons, and so of their outputs."""
        return np.maximum(np.abs(self.known_lower), np.abs(self.known_upper))

    def lines_of(self, lower: Floats, upper: Floats, chord: NDArray[np.bool_]) -> NeuronLines:
        """NeuronLines of neurons with these bounds of their inputs.

        Above: the chord, or where `chord` is False the line parallel to the one below.
        """
        floor = self.floor
        leaning = np.where(upper > -lower, 1.0, floor)
        spread = (1 - floor) * np.minimum(upper, -lower) * (1 + WIDER)
        decided = (lower >= 0) | (upper <= 0)
        fixed = np.where(lower >= 0, 1.0, floor)
        with np.errstate(divide="ignore", invalid="ignore"):
            slope = (upper - floor * lower) / (upper - lower)
        top = np.maximum((floor - slope) * lower, (1 - slope) * upper) + 2.0**-48 * (np.abs(lower) + np.abs(upper))
        return NeuronLines(
            lower=lower,
            upper=upper,
            chord=chord,
            low=np.where(decided, fixed, leaning),
            up=np.where(decided, fixed, np.where(chord, slope, leaning)),
            top=np.where(decided, 0.0, np.where(chord, top, spread)),
        )

    def planes_above(self, neurons: Index, share: Floats) -> Above:
        """Planes whose slopes c are `share` (n, d) times those of the first ReLU's `neurons` (n,), z = a v + b.

        h - c v is convex in z and in v, so that it is largest where z is h or floor z is, at a corner of the box.
        """
        stage = self.stages[0]
        rows, floor = stage.rows.pick(neurons), self.floor[neurons]
        a, run = dense(rows.at_v), _reach(rows.at_e)
        c = share * a
        on = rows.offset + np.abs(a - c).sum(1)
        off = floor * rows.offset + np.abs(floor[:, None] * a - c).sum(1)
        size = np.abs(a).sum(1) + np.abs(c).sum(1) + np.abs(rows.offset)
        given = np.zeros(stage.stop, dtype=np.bool_)
        slope, offset = np.zeros((stage.stop, len(self.x))), np.zeros(stage.stop)
        given[neurons], slope[neurons] = True, c
        size += 2 * run
        offset[neurons] = np.maximum(on + run, off + floor * run) + rows.slack
        offset[neurons] += 4 * gamma(len(self.x) + rows.at_e.shape[1] + 64) * size
        return Above(given=given, slope=slope, offset=offset)

    def _fold(self, node: int, coefficient: Matrix) -> AffineForms:
        """Functionals coefficient @ (value of the node) in terms of v and h."""
        pending: dict[int, Matrix] = {node: coefficient}
        count = coefficient.shape[0]
        offset, slack, hidden = np.zeros(count), np.zeros(count), np.zeros((count, len(self.floor)))
        run: list[Matrix] = [sparse.csr_array((count, int((error > 0).sum()))) for error in self.errors[: node + 1]]
        for number in range(node, 0, -1):
            if number not in pending:
                continue
            a, layer = pending.pop(number), self.graph.layers[number - 1]
            slack += abs(a) @ self.noise[number][:, 0]
            run[number] = self._erring(number, a)
            if isinstance(layer, Relu):
                stage = self.stages.get(self._number[number])
                if stage is not None:
                    hidden[:, stage.start : stage.stop] = dense(a[:, stage.entry])
                _merge(pending, layer.source, _scaled(a, self._slope[number]))
            else:
                offset += a @ layer.bias
                for matrix, source in zip(layer.matrices, layer.sources, strict=True):
                    _merge(pending, source, _product(a, matrix))
        a = pending.get(0, sparse.csr_array((count, len(self.x))))
        slack += gamma(len(self.x) + 64) * (abs(a) @ (np.abs(self.x) + self.radius))
        run[0] = self._erring(0, a)
        return AffineForms(
            at_v=a * self.radius, at_e=_joined(run, 1), at_h=hidden, offset=offset + a @ self.x, slack=slack
        )

    def _erring(self, number: int, coefficient: Matrix) -> Matrix:
        """The coefficients (R, E) of a node's errors."""
        error = self.errors[number][:, 0]
        some = np.flatnonzero(error > 0)
        return _scaled(coefficient[:, some], error[some])

    def margins(self, rival: int) -> AffineForms:
        """logit[rival] - logit[c] for every class c."""
        return self._fold(len(self.graph.layers), against(rival, self.graph.sizes[-1]))

    def plane(
        self, rows: AffineForms, lines: NeuronLines, low: Floats | None = None, signs: Signs | None = None
    ) -> tuple[Matrix, Floats]:
        """(a (R, d), o (R,)) with functional >= a v + o, on the part of the box where the signs hold.

        low: (R, U) slopes below, in [floor, 1]; None: those of the lines.
        """
        return self.plane_apart(rows, lines, low, signs, np.zeros(0, dtype=np.int64))[:2]

    def plane_apart(
        self, rows: AffineForms, lines: NeuronLines, low: Floats | None, signs: Signs | None, apart: Index
    ) -> tuple[Matrix, Floats, Floats, Floats]:
        """As `plane`, for the functional less w h - nu z of the first ReLU's neurons `apart` (C,); and w, nu (R, C)."""
        left = np.zeros((2, len(rows.offset), len(apart)))
        a, offset, weight, run = rows.at_v, rows.offset.copy(), rows.at_h.copy(), rows.at_e
        width = weight.shape[1]
        terms = _reach(a) + np.abs(weight) @ self.largest[:width] + np.abs(offset) + _reach(run)
        slack = rows.slack + 8 * gamma(len(self.x) + run.shape[1] + width + 64) * terms
        stages = [stage for stage in reversed(self.stages.values()) if stage.stop <= width]
        if stages:
            a, run = np.array(dense(a)), np.array(dense(run))
        for stage in stages:
            part = slice(stage.start, stage.stop)
            w = weight[:, part]
            positive = w > 0
            slope = np.where(positive, lines.low[part] if low is None else low[:, part], lines.up[part])
            top = np.where(positive, 0.0, lines.top[part])
            above = lines.above if stage.start == 0 else None
            under = np.minimum(w, 0.0)
            if above is not None:
                under *= above.given
                slope, top = np.where(under < 0, 0.0, slope), np.where(under < 0, above.offset, top)
            force = None
            if signs is not None:
                here = (signs.neuron >= stage.start) & (signs.neuron < stage.stop)
                if here.any():
                    row, neuron, side = signs.row[here], signs.neuron[here] - stage.start, signs.side[here]
                    floor = self.floor[part][neuron]
                    slope[row, neuron], top[row, neuron] = np.where(side > 0, 1.0, floor), 0.0
                    force = (row, neuron), side * signs.beta[here]
                    under[row, neuron] = 0.0
            nu = w * slope
            if force is not None:
                nu[force[0]] -= force[1]
            if stage.start == 0:
                left[:] = w[:, apart], nu[:, apart]
                top = np.array(np.broadcast_to(top, w.shape))
                top[:, apart] = 0.0
            offset += (w * top).sum(1) + nu @ stage.rows.offset
            a += nu @ stage.rows.at_v
            if above is not None:
                a += under @ above.slope
            weight[:, : stage.start] += nu @ stage.rows.at_h
            run[:, : stage.rows.at_e.shape[1]] += nu @ stage.rows.at_e
            slack += (np.abs(nu) + np.abs(w)) @ self._cost[part]
        return a, offset - slack - _reach(run) * (1 + WIDER), *left

    def least(self, rows: AffineForms, lines: NeuronLines, low: Floats | None = None) -> Floats:
        """Lower bounds (R,) of the functionals over the box."""
        return lowest(*self.plane(rows, lines, low))

    def tightened(self, lines: NeuronLines, number: int, neurons: Index, low: Floats) -> tuple[Floats, Floats]:
        """Bounds of all neurons' inputs, those numbered `neurons`, of the ReLU `number`, better if `low` makes them so.

        low: (2 n, U) slopes for their lower bounds, then for their upper ones.
        """
        stage = self.stages[number]
        rows = stage.rows.pick(neurons - stage.start)
        lower, upper = lines.lower.copy(), lines.upper.copy()
        half = len(neurons)
        least = self.least(rows, lines, low[:half])
        lower[neurons] = np.maximum(lower[neurons], least)
        least = self.least(rows.times(np.full(half, -1.0)), lines, low[half:])
        upper[neurons] = np.minimum(upper[neurons], -least)
        return lower, upper


class SharedNeurons:
    """Neurons of the first ReLU that at least two of M executions have.

    Their inputs are z_m = t + b_m with one t = a v, since the rows a are the same. So the sum over m of w_m h - nu_m z
    is at least its minimum over t: a piecewise linear function's, at an end of its range or where some z_m is 0.

    Attributes:
        apart: for each execution, those of its neurons.
    """

    def __init__(self, executions: Sequence[Execution], lines: Sequence[NeuronLines]) -> None:
        """None where an execution has no such neuron, or planes above them."""
        stages = [execution.stages.get(0) for execution in executions]
        plain = [one for one, line in zip(stages, lines, strict=True) if one is not None and line.above is None]
        every, times = np.unique(np.concatenate([one.entry for one in plain] or [np.zeros(0, int)]), return_counts=True)
        entry = every[times > 1] if len(plain) == len(stages) else every[:0]
        self.apart = [np.zeros(0, dtype=np.int64) for _ in stages]
        self._has = np.zeros((len(stages), len(entry)), dtype=np.bool_)
        self._b, self._slack, self._floor = *np.zeros((2, len(stages), len(entry))), np.zeros(len(entry))
        self._low, self._high = np.full(len(entry), -np.inf), np.full(len(entry), np.inf)
        for m, (execution, stage) in enumerate(zip(executions, plain if len(entry) else (), strict=False)):
            mine, here = np.flatnonzero(np.isin(stage.entry, entry)), np.isin(entry, stage.entry)
            rows, self.apart[m], self._has[m] = stage.rows.pick(mine), mine, here
            run = _reach(rows.at_e)
            size = np.abs(rows.offset) + _reach(rows.at_v) + run
            terms = rows.at_v.shape[1] + rows.at_e.shape[1] + 64
            b, slack = rows.offset, rows.slack + run + 8 * gamma(terms) * size
            self._floor[here], self._b[m, here], self._slack[m, here] = execution.floor[mine], b, slack
            self._low[here] = np.maximum(self._low[here], execution.known_lower[mine] - b - slack)
            self._high[here] = np.minimum(self._high[here], execution.known_upper[mine] - b + slack)

    def least(self, left: Sequence[tuple[Floats, Floats]], signs: Sequence[Signs]) -> tuple[Floats, NDArray[np.bool_]]:
        """Lower bounds (R,) of the sums over all neurons, of w and nu (R, C_m) each; and which parts are empty."""
        count = len(left[0][0])
        w, nu = np.zeros((2, len(left), count, len(self._floor)))
        low, high = np.tile(self._low, (count, 1)), np.tile(self._high, (count, 1))
        for m, ((weight, slope), given, mine) in enumerate(zip(left, signs, self.apart, strict=True)):
            own = np.flatnonzero(self._has[m])
            w[m][:, own], nu[m][:, own] = weight, slope
            known = np.isin(given.neuron, mine)
            row, place = given.row[known], own[np.searchsorted(mine, given.neuron[known])]
            on = given.side[known] > 0
            zero, slack = -self._b[m, place], self._slack[m, place]
            np.maximum.at(low, (row[on], place[on]), (zero - slack)[on])
            np.minimum.at(high, (row[~on], place[~on]), (zero + slack)[~on])
        best = np.full(low.shape, np.inf)
        for t in (low, high, *-self._b):
            z = np.clip(t, low, high) + self._b[:, None]
            best = np.minimum(best, (w * np.maximum(z, self._floor * z) - nu * z).sum(0))
        size = np.abs(w) + np.abs(nu)
        reach = np.maximum(np.abs(low), np.abs(high)) + np.abs(self._b).max(0, initial=0.0)
        error = (size * self._slack[:, None]).sum(0) + gamma(4 * len(left) + 64) * size.sum(0) * reach
        terms = np.abs(best) + error
        total: Floats = (best - error).sum(1) - gamma(len(self._floor) + 64) * terms.sum(1)
        return total, np.asarray((low > high).any(1))


def lowest(a: Matrix, offset: Floats) -> Floats:
    """The least value of a v + offset over |v| <= 1, outward."""
    reach = _reach(a)
    return offset - reach - gamma(a.shape[1] + 64) * (reach + np.abs(offset))


def _units(entry: Index, size: int) -> Matrix:
    return sparse.csr_array((np.ones(len(entry)), (np.arange(len(entry)), entry)), shape=(len(entry), size))


def _scaled(matrix: Matrix, factor: Floats) -> Matrix:
    """Columns times factors."""
    if not sparse.issparse(matrix):
        return matrix * factor
    scaled = sparse.csr_array((matrix.data * factor[matrix.indices], matrix.indices, matrix.indptr), matrix.shape)
    scaled.eliminate_zeros()
    return scaled


def _merge(pending: dict[int, Matrix], node: int, part: Matrix) -> None:
    if node not in pending:
        pending[node] = part
        return
    old = pending[node]
    pending[node] = old + part if sparse.issparse(old) and sparse.issparse(part) else dense(old) + dense(part)


def _stacked(parts: list[AffineForms]) -> AffineForms:
    return AffineForms(
        at_v=_joined([part.at_v for part in parts], 0),
        at_e=_joined([part.at_e for part in parts], 0),
        at_h=np.concatenate([part.at_h for part in parts]),
        offset=np.concatenate([part.offset for part in parts]),
        slack=np.concatenate([part.slack for part in parts]),
    )


def _joined(parts: list[Matrix], axis: int) -> Matrix:
    """Matrices one below the other (axis 0) or side by side (1)."""
    if all(sparse.issparse(part) for part in parts):
        return compact((sparse.hstack if axis else sparse.vstack)(parts, format="csr"))
    return np.concatenate([dense(part) for part in parts], axis=axis)


def _reach(matrix: Matrix) -> Floats:
    """The sums of each row's absolute values."""
    found: Floats = abs(matrix).sum(1)
    return found


def _rows_times(matrix: Matrix, factor: Floats) -> Matrix:
    if not sparse.issparse(matrix):
        return matrix * factor[:, None]
    data = matrix.data * np.repeat(factor, np.diff(matrix.indptr))
    return sparse.csr_array((data, matrix.indices, matrix.indptr), matrix.shape)


def _product(a: Matrix, matrix: Matrix) -> Matrix:
    """a @ matrix, without the entries that no row of a dense `a` uses."""
    if sparse.issparse(a):
        return compact(a @ matrix)
    used = np.flatnonzero(a.any(axis=0))
    return a[:, used] @ matrix[used]
