"""alpha-CROWN for networks with S-shaped layers: every functional ascends slopes of its own, hidden bounds first.

Xu et al. 2021, "Fast and Complete" (alpha-CROWN), with the lines of Zhang et al. 2018 (CROWN).
Differs from the papers in: (1) both lines of a sigmoid or tanh have a free slope; the offset follows in closed form
(relaxation.s_shaped_offset), so a line is sound whatever slope the ascent finds; (2) layer by layer, the bounds of
hidden neurons are ascended with those found before, each neuron and side with slopes of its own; (3) the ascent runs
through the rules of bounds/linear.py in float64 with their outward errors, so every iterate is a claim; the best one
counts. ReLUs have a free slope below; max pools and other functions keep
their relaxation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor, nn

from citrus_tool.bounds.crown import relaxation_of
from citrus_tool.bounds.float32 import FileErrors, grown
from citrus_tool.bounds.fold import FOLDABLE, floor_of, margin_rows
from citrus_tool.bounds.linear import RelaxedNetwork, backward_error, concretise, seed, to_input
from citrus_tool.bounds.pools import MaxPoolRelaxation
from citrus_tool.bounds.relaxation import (
    OPEN,
    RELAXATIONS,
    SIGMOID,
    TANH,
    Lines,
    ProductRelaxation,
    Relaxation,
    SShaped,
    s_shaped_offset,
)
from citrus_tool.bounds.rounding import OUTWARD_INTERVAL, widen
from citrus_tool.bounds.rows import Rows
from citrus_tool.network import INPUT, Network, Node, find_rule, size
from citrus_tool.threat import Box

S_SHAPED: Final[Mapping[type[nn.Module], tuple[SShaped, float]]] = {nn.Sigmoid: (SIGMOID, 0.25), nn.Tanh: (TANH, 1.0)}
"""The function of a layer, and its greatest slope."""
HIDDEN_STEPS: Final = 10
"""Adam's steps for the bounds of hidden neurons: few, as there are many neurons."""
STEPS: Final = 60
"""Adam's steps, at most, for the functionals that have to be positive: more, as these decide."""
RATE: Final = 0.08
"""Adam's first step of a slope, in units of the greatest slope."""
DECAY: Final = 0.95
"""Factor by which each step is smaller than the one before."""
LEAST: Final = 1e-7
"""Least slope of an S-shaped function's line: its touching point is found by dividing by it."""
CHUNK_BYTES: Final = 2**25
"""Bytes of the slopes of functionals that are ascended together (32 MiB): it bounds the memory of one step."""

Seed = Callable[[Tensor], tuple[str, Rows]]
"""Sample numbers (R,) -> the node where R functionals start, and these, row r of sample r."""


class SlopeAscent:
    """Lower bounds of the margins f_0 - f_c of a network over one box, in steps that can be interrupted.

    Args:
        network: in float64, evaluation mode.
        boxes: of every node over the box (batch of 1), as `crown.relax` gives them.
        classes: the margins that are wanted.
        goal: bounds above it are good enough.

    Attributes:
        lower: (classes,) the best bounds so far; -inf before the first.
        done: nothing is left to try.
    """

    def __init__(self, network: Network, boxes: Mapping[str, Box], classes: Tensor, goal: float) -> None:
        self.network, self._known, self._classes, self._goal = network, boxes, classes, goal
        self.lower = torch.full((len(classes),), -torch.inf, dtype=torch.float64)
        self.done = False
        self._work = self._stages()

    def grow(self, deadline: float) -> None:
        """Works until `deadline` (time.monotonic) or the end; one chunk of functionals may overrun it."""
        while not self.done and time.monotonic() < deadline:
            self.done = next(self._work, None) is None or bool((self.lower > self._goal).all())

    def _stages(self) -> Iterator[bool]:
        """Yields after each chunk."""
        network = self.network
        file_errors = FileErrors.of(network)
        boxes: dict[str, Box] = {INPUT: self._known[INPUT]}
        relaxations: dict[str, Relaxation] = {}
        errors: dict[str, Tensor] = {}
        state = _State(
            network=network, boxes=boxes, relaxations=relaxations, errors=errors, file_errors=file_errors.found
        )
        fixed = RelaxedNetwork(
            network=network, boxes=boxes, relaxations=relaxations, errors=errors, file_errors=file_errors.found
        )
        nonlinear = {node.name for node in network.nodes if type(node.layer) in RELAXATIONS}
        refined = {INPUT}
        for node in network.nodes:
            if node.name in nonlinear:
                for source in node.inputs:
                    if source in refined:
                        continue
                    boxes[source] = _intersection(boxes[source], self._known[source])
                    if relaxations and source not in nonlinear:
                        yield from state.refine(source, OPEN[type(node.layer)](boxes[source]))
                    refined.add(source)
                relaxations[node.name] = relaxation_of(fixed, node)
            inputs = [boxes[name] for name in node.inputs]
            image: Box = find_rule(OUTWARD_INTERVAL, node)(node.layer, *inputs)
            boxes[node.name] = grown(image, file_errors.at(node, *inputs))
            errors[node.name] = backward_error(network, node, *inputs)
        for index in torch.split(torch.arange(len(self._classes)), state.chunk()):

            def start(sample: Tensor, index: Tensor = index) -> tuple[str, Rows]:
                rows = margin_rows(network, 0, self._classes[index], boxes[INPUT])
                return network.output_name, replace(rows, sample=sample)

            self.lower[index] = state.ascend(start, len(index), STEPS, self._goal)
            yield True


@dataclass(frozen=True, kw_only=True)
class _State:
    """The nodes that are bounded and relaxed so far; the mappings grow."""

    network: Network
    boxes: dict[str, Box]
    relaxations: Mapping[str, Relaxation]
    errors: Mapping[str, Tensor]
    file_errors: Mapping[str, Tensor]

    def chunk(self) -> int:
        """How many functionals are ascended together."""
        neurons = sum(size(self.network.shape_of(name)) for name in self.relaxations)
        return max(1, CHUNK_BYTES // (16 * max(1, neurons)))

    def refine(self, name: str, open_entries: Tensor) -> Iterator[bool]:
        """Tightens the box of node `name` at `open_entries`, chunk by chunk."""
        known = self.boxes[name]
        lower, upper = known.lower.flatten().clone(), known.upper.flatten().clone()
        plain = RelaxedNetwork(network=self.network, file_errors=self.file_errors)
        for entry in torch.split(open_entries.flatten().nonzero().flatten(), max(1, self.chunk() // 2)):
            sign = torch.ones_like(entry, dtype=lower.dtype)

            def start(sample: Tensor, entry: Tensor = entry, sign: Tensor = sign) -> tuple[str, Rows]:
                return seed(plain, name, sample, entry.repeat(2), torch.cat([sign, -sign]))

            below, above = self.ascend(start, 2 * len(entry), HIDDEN_STEPS, torch.inf).reshape(2, -1)
            lower[entry], upper[entry] = torch.maximum(lower[entry], below), torch.minimum(upper[entry], -above)
            shape = known.centre.shape
            self.boxes[name] = widen(Box.from_bounds(lower.reshape(shape), upper.reshape(shape)))
            yield True

    def ascend(self, start: Seed, count: int, steps: int, goal: float) -> Tensor:
        """The best lower bounds (count,) of `count` functionals over the box in at most `steps` steps."""
        slopes = [_slopes(node, self, count) for node in self.network.nodes if node.name in self.relaxations]
        groups = [{"params": list(free.values), "lr": RATE * free.greatest} for free in slopes if free.values]
        best = torch.full((count,), -torch.inf, dtype=torch.float64)
        optimiser = torch.optim.Adam(groups) if groups else None
        for step in range(steps + 1):
            with torch.enable_grad():
                lower = self._lower(start, count, slopes)
                loss = -lower.sum()
            best = torch.where(lower > best, lower, best).detach()  # a NaN is no bound
            if step == steps or optimiser is None or bool((best > goal).all()):
                break
            optimiser.zero_grad()
            torch.autograd.backward([loss])
            optimiser.step()
            for group in optimiser.param_groups:
                group["lr"] *= DECAY
            for free in slopes:
                for value in free.values:
                    value.data.clamp_(free.least, free.greatest)
        return best

    def _lower(self, start: Seed, count: int, slopes: list[_Slopes]) -> Tensor:
        relaxed = RelaxedNetwork(
            network=self.network,
            relaxations={free.node: free.relaxation() for free in slopes},
            errors={name: error.expand(count) for name, error in self.errors.items()},
            file_errors={name: _repeated(error, count) for name, error in self.file_errors.items()},
        )
        box = self.boxes[INPUT]
        whole = Box(centre=_repeated(box.centre, count), radius=_repeated(box.radius, count))
        name, rows = start(torch.arange(count))
        return concretise(relaxed, to_input(relaxed, rows, start=name), whole).lower


@dataclass(frozen=True, kw_only=True)
class _Slopes:
    """The relaxation of one node for R functionals: what is fixed, and the slopes `values` (R, *shape) to ascend."""

    node: str
    fixed: Relaxation
    values: tuple[Tensor, ...] = ()
    least: float = 0.0
    greatest: float = 1.0
    open: Tensor | None = None
    function: SShaped | None = None
    box: Box | None = None

    def relaxation(self) -> Relaxation:
        """With the present slopes; differentiable in them."""
        if not isinstance(self.fixed, Lines) or not self.values:
            return self.fixed
        if self.function is None:
            (alpha,) = self.values
            assert self.open is not None
            return Lines(
                lower_slope=torch.where(self.open, alpha, self.fixed.lower_slope),
                upper_slope=self.fixed.upper_slope,
                upper_offset=self.fixed.upper_offset,
            )
        assert self.box is not None
        below, above = self.values
        return Lines(
            lower_slope=below,
            upper_slope=above,
            lower_offset=_offset(self.function, self.box, below, above=False),
            upper_offset=_offset(self.function, self.box, above, above=True),
        )


def _slopes(node: Node, state: _State, count: int) -> _Slopes:
    """Starts from CROWN's lines."""
    box = widen(state.boxes[node.inputs[0]])
    found = state.relaxations[node.name]
    if isinstance(found, MaxPoolRelaxation):
        return _Slopes(node=node.name, fixed=MaxPoolRelaxation(planes=_repeated(found.planes, count)))
    if isinstance(found, ProductRelaxation):
        factors = (_repeated(part, count) for part in (found.left, found.right, found.constant, found.spread))
        left, right, constant, spread = factors
        fixed = ProductRelaxation(left=left, right=right, constant=constant, spread=spread)
        return _Slopes(node=node.name, fixed=fixed)
    lines = Lines(
        lower_slope=_repeated(found.lower_slope, count),
        upper_slope=_repeated(found.upper_slope, count),
        upper_offset=_repeated(found.upper_offset, count),
        lower_offset=None if found.lower_offset is None else _repeated(found.lower_offset, count),
    )
    if type(node.layer) not in S_SHAPED and not isinstance(node.layer, FOLDABLE):
        return _Slopes(node=node.name, fixed=lines)
    below = lines.lower_slope.clone().requires_grad_()
    if isinstance(node.layer, FOLDABLE):
        still_open = OPEN[type(node.layer)](box)
        return _Slopes(node=node.name, fixed=lines, values=(below,), least=floor_of(node.layer), open=still_open)
    function, greatest = S_SHAPED[type(node.layer)]
    above = lines.upper_slope.clone().requires_grad_()
    return _Slopes(
        node=node.name,
        fixed=lines,
        values=(below, above),
        least=LEAST,
        greatest=greatest,
        function=function,
        box=box,
    )


def _offset(f: SShaped, box: Box, slope: Tensor, *, above: bool) -> Tensor:
    """`s_shaped_offset`, with the derivative of an extremum: minus the point where it is attained."""
    fixed = slope.detach()
    offset = s_shaped_offset(f, box.lower, box.upper, fixed, above=above)
    touch = f.touch(fixed) if above else -f.touch(fixed)
    lower, upper = (side.expand_as(fixed) for side in (box.lower, box.upper))
    points = torch.stack([lower, upper, torch.minimum(torch.maximum(touch, lower), upper)])
    gaps = f.value(points) - fixed * points
    place = gaps.argmax(0) if above else gaps.argmin(0)
    return offset - (slope - fixed) * points.gather(0, place[None])[0]


def _repeated(value: Tensor, count: int) -> Tensor:
    return value.expand(count, *value.shape[1:])


def _intersection(first: Box, second: Box) -> Box:
    """A box that contains what both contain; both contain the same set, so it is not empty."""
    one, other = widen(first), widen(second)
    return widen(Box.from_bounds(torch.maximum(one.lower, other.lower), torch.minimum(one.upper, other.upper)))
