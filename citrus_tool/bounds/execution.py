"""One input's execution, relaxed over its box and folded: where optimised bounds come from and are claimed.

Xu et al. 2021, "Fast and Complete" (alpha-CROWN); hidden bounds are optimised too, each neuron and side on its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from citrus_tool.bounds.ascent import COLUMNS, Ascent, ascend
from citrus_tool.bounds.claims import row_slices, tuned_planes
from citrus_tool.bounds.duals import GRID, Duals, Targets
from citrus_tool.bounds.float32 import grown
from citrus_tool.bounds.fold import Fold, fold, foldable_nodes, margin_rows
from citrus_tool.bounds.linear import LinearBounds, RelaxedNetwork, seed
from citrus_tool.bounds.relaxation import RELAXATIONS
from citrus_tool.bounds.rounding import OUTWARD_INTERVAL, widen
from citrus_tool.bounds.rows import Rows
from citrus_tool.bounds.workspace import Schedule
from citrus_tool.network import INPUT, Node, find_rule
from citrus_tool.threat import Box


@dataclass(frozen=True, kw_only=True)
class TighteningStep:
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
class ExecutionView:
    """What a proof says of an execution: its neurons and choices, without the matrices, which are far larger.

    Attributes:
        nodes: the network's nodes in FOLDABLE, in topological order.
        open: node -> (U,) flat indices of its open neurons, in the order of the execution's stages.
        input_planes: (U, d) uint8 shares of the planes above the first stage's neurons; None without planes.
        steps: how the bounds of hidden neurons were optimised, in order.
    """

    nodes: tuple[str, ...]
    open: Mapping[str, Tensor]
    input_planes: Tensor | None
    steps: tuple[TighteningStep, ...]

    @property
    def neurons(self) -> int:
        """Open neurons of all stages."""
        return sum(map(len, self.open.values()))


@dataclass(frozen=True, kw_only=True)
class FoldedExecution:
    """The execution of one input: the network relaxed over its box, and folded.

    Attributes:
        relaxed: for a batch of 1, in float64.
        label: its true class.
        system: the folded system of these boxes.
        signs: nonlinear node -> (neurons,) +1 where its input is known to be >= 0 on the part of the box that the
            execution stands for, -1: <= 0, 0: not known. Boxes and bounds hold on that part only; empty: the whole box.
        steps: how the bounds of hidden neurons were optimised, in order.
    """

    relaxed: RelaxedNetwork
    label: int
    system: Fold
    signs: Mapping[str, Tensor] = field(default_factory=dict)
    steps: tuple[TighteningStep, ...] = ()

    @property
    def box(self) -> Box:
        """Of the input."""
        return self.relaxed.box

    @cached_property
    def view(self) -> ExecutionView:
        """The execution as proofs know it."""
        stages = self.system.stages
        shares = [stage.input_planes.share for stage in stages if stage.input_planes is not None]
        return ExecutionView(
            nodes=tuple(node.name for node in foldable_nodes(self.relaxed.network)),
            open={stage.node: stage.entry for stage in stages},
            input_planes=shares[0] if shares else None,
            steps=self.steps,
        )

    @cached_property
    def origin(self) -> Box:
        """The input (1, ...) of the first nonlinear node less what the perturbation adds to it, enclosed.

        In real arithmetic that is its value without a perturbation; a run of the file over the whole box may differ
        from it by the errors of the layers before.
        """
        network, errors = self.relaxed.network, self.relaxed.file_errors
        first, centre = foldable_nodes(network)[0].inputs[0], self.box.centre
        values = {INPUT: grown(Box(centre=centre, radius=torch.zeros_like(centre)), errors.get(INPUT))}
        for node in network.nodes:
            if first in values:
                break
            image = find_rule(OUTWARD_INTERVAL, node)(node.layer, *(values[name] for name in node.inputs))
            values[node.name] = grown(image, errors.get(node.name))
        return widen(values[first])

    @staticmethod
    def of(relaxed: RelaxedNetwork, label: int, number: int) -> FoldedExecution:
        """Input `number` of a batch that `crown.relax` has read, of this label; the network must be `foldable`."""
        own = relaxed.select(slice(number, number + 1))
        return FoldedExecution(relaxed=own, label=label, system=fold(own, label))

    def margins(self, classes: Tensor) -> tuple[str, Rows]:
        """Rows f_label - f_c at the output for c in `classes`, for `tuned_planes`."""
        network = self.relaxed.network
        return network.output_name, margin_rows(network, self.label, classes, self.box)

    def root(self, classes: Tensor, schedule: Schedule) -> tuple[LinearBounds, Ascent]:
        """alpha-CROWN on the whole box: planes claimed of the margins over `classes`, and the ascent behind them.

        Claims are made with the ascent's duals `on_grid`.
        """
        start = self.start(self.system, len(classes))
        found = ascend(self.system, Targets.of(self.system.margins, classes), start, schedule)
        return tuned_planes(self.relaxed, self.system, *self.margins(classes), found.duals.on_grid()), found

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

    def split(self, neuron: int, schedule: Schedule) -> tuple[FoldedExecution, FoldedExecution]:
        """The parts of the box where the input of open neuron `neuron` is >= 0 and <= 0.

        The bounds of the open neurons in later stages are optimised on each.
        """
        stage = next(stage for stage in self.system.stages if stage.start <= neuron < stage.stop)
        size = self.relaxed.boxes[stage.source].centre.numel()
        known = self.signs.get(stage.node, torch.zeros(size, device=stage.entry.device))
        found = []
        for side in (1.0, -1.0):
            signs = known.clone()
            signs[stage.entry[neuron - stage.start]] = side
            part = replace(self, signs={**self.signs, stage.node: signs})
            found.append(part.tightened(schedule, after=stage.node))
        return found[0], found[1]

    def tightened(self, schedule: Schedule, *, after: str | None = None) -> FoldedExecution:
        """The execution with the bounds of its open neurons optimised, from the first stage on, or behind node `after`.

        A stage's neurons are bounded from both sides with slopes of their own on the boxes of the stages before.
        """
        found, started = self, after is None
        for node in foldable_nodes(self.relaxed.network):
            if not started:
                started = node.name == after
                continue
            number = next((i for i, stage in enumerate(found.system.stages) if stage.node == node.name), None)
            if number:  # the inputs of the first stage are bounded exactly
                found = found._tightened(node, number, schedule)
        return found

    def _tightened(self, node: Node, number: int, schedule: Schedule) -> FoldedExecution:
        stage, before = self.system.stages[number], self.system.before(number)
        targets = Targets.both_sides(stage.inputs)
        sign = torch.ones(2 * len(stage.entry), dtype=torch.float64, device=stage.entry.device)
        sign[len(stage.entry) :] = -1.0
        entry = stage.entry.repeat(2)
        lower = torch.empty_like(sign)
        alpha = sign.new_empty(len(sign), before.neurons, dtype=torch.uint8)
        for part in row_slices(len(sign), COLUMNS):
            columns = targets.columns(part)
            found = ascend(before, columns, self.start(before, len(columns.offset)), schedule)
            duals = found.duals.on_grid()
            alpha[part] = (duals.alpha.T * GRID).round().to(torch.uint8)
            start, rows = seed(self.relaxed, stage.source, torch.zeros_like(entry[part]), entry[part], sign[part])
            lower[part] = tuned_planes(self.relaxed, before, start, rows, duals).lower
        known = self.relaxed.boxes[stage.source]
        low, high = known.lower.flatten().clone(), known.upper.flatten().clone()
        low[stage.entry] = torch.maximum(low[stage.entry], lower[: len(stage.entry)])
        high[stage.entry] = torch.minimum(high[stage.entry], -lower[len(stage.entry) :])
        box = widen(Box.from_bounds(low.reshape(known.centre.shape), high.reshape(known.centre.shape)))
        lines = RELAXATIONS[type(node.layer)](node.layer, widen(box))
        relaxed = replace(
            self.relaxed,
            boxes={**self.relaxed.boxes, stage.source: box},
            relaxations={**self.relaxed.relaxations, node.name: lines},
        )
        system = fold(relaxed, self.label, like=self.system, dtype=self.system.radius.dtype)
        steps = (*self.steps, TighteningStep(node=node.name, entry=stage.entry, alpha=alpha))
        return replace(self, relaxed=relaxed, system=system, steps=steps)
