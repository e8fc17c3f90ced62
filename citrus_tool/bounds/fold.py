"""A piecewise linear network over one box, with every decided neuron folded away.

Over a box most ReLUs are decided: identity or zero. What is left is an affine map from the box's perturbation
v = u / radius, |v| <= 1, and the outputs h of the few open neurons to the open neurons' inputs z and to the margins:

    z_l = A_l v + B_l h_(earlier) + b_l        h_l = max(z_l, floor_l z_l)        margin_c = A_c v + B_c h + b_c

Bounds are optimised on this small system (bounds/optimised.py) instead of on the layers: the same bounds as the
backward rules give, for a fraction of the operations. It is rounded like any float32 or float64 computation and
certifies nothing; claims are re-evaluated by the rules of bounds/linear.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from citrus_tool.bounds.linear import BACKWARD, Reading, Rows, seed, to_input
from citrus_tool.bounds.relaxation import OPEN, RELAXATIONS, Lines, Relaxation
from citrus_tool.bounds.rounding import widen
from citrus_tool.network import Network, Node, Rule, size
from citrus_tool.threat import Box

FOLDABLE: tuple[type[nn.Module], ...] = (nn.ReLU, nn.LeakyReLU)
"""The nonlinear layers that are identity or a multiple of it once their input's sign is known."""

SPARSE_BELOW = 0.2
"""Matrices with a smaller share of nonzeros are kept in compressed rows; measured on ConvSmall, one CPU core."""

ROW_CHUNK = 256
"""Functionals carried to the input in one go while folding."""


def foldable(network: Network) -> bool:
    """Whether every nonlinear layer of the network is in FOLDABLE, and there is one."""
    kinds = {type(node.layer) for node in network.nodes} & RELAXATIONS.keys()
    return bool(kinds) and kinds <= set(FOLDABLE)


@dataclass(frozen=True, kw_only=True)
class Affine:
    """R functionals of (v, h): `at_input` (R, d), `at_hidden` (R, earlier neurons), `offset` (R,)."""

    at_input: Tensor
    at_hidden: Tensor
    offset: Tensor

    def __len__(self) -> int:
        return len(self.offset)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The open neurons of one nonlinear node, columns `start` to `stop` of the folded system.

    Attributes:
        node: the node's name.
        entry: (U,) their flat indices in the node's value.
        affine: the map to their inputs; rows over neurons before `start`.
        upper_slope, upper_offset: (U, 1) the line above each neuron.
        floor: slope left of 0, the least slope that a line below may have.
        input_matrix, hidden_matrix: `affine`'s matrices as the optimiser multiplies them, and their transposes.
    """

    node: str
    entry: Tensor
    start: int
    affine: Affine
    upper_slope: Tensor
    upper_offset: Tensor
    lower_slope: Tensor
    floor: float
    input_matrix: Tensor
    input_transpose: Tensor
    hidden_matrix: Tensor
    hidden_transpose: Tensor

    @property
    def stop(self) -> int:
        """One past the last neuron."""
        return self.start + len(self.entry)


@dataclass(frozen=True, kw_only=True)
class Fold:
    """The folded system of one box (module docstring).

    Attributes:
        stages: in topological order.
        margins: rows f_y - f_c for every class c, over all neurons; zero at the true class.
        radius: (d,) of the box: a row over u has `at_input` / radius.
    """

    stages: tuple[Stage, ...]
    margins: Affine
    radius: Tensor

    @property
    def neurons(self) -> int:
        """Number of open neurons."""
        return self.stages[-1].stop if self.stages else 0

    def stage_of(self, node: str) -> Stage | None:
        """The stage of a node, None when all its neurons are decided."""
        return next((stage for stage in self.stages if stage.node == node), None)


def nonlinear_nodes(network: Network) -> tuple[Node, ...]:
    """The network's foldable nodes in topological order."""
    return tuple(node for node in network.nodes if isinstance(node.layer, FOLDABLE))


def floor_of(node: Node) -> float:
    """Slope of a foldable layer left of 0."""
    return float(node.layer.negative_slope) if isinstance(node.layer, nn.LeakyReLU) else 0.0


def fold(
    network: Network,
    boxes: Mapping[str, Box],
    relaxations: Mapping[str, Relaxation],
    label: int,
    *,
    dtype: torch.dtype = torch.float32,
) -> Fold:
    """Folds a network over one box.

    Args:
        network: in float64; `foldable`.
        boxes, relaxations: of one input (batch of 1), as `crown.relax` gives them.
        label: the true class.
        dtype: of the result.
    """
    folder = _Folder(network=network, boxes=boxes, relaxations=relaxations, dtype=dtype)
    stages: list[Stage] = []
    for node in nonlinear_nodes(network):
        entry = OPEN[type(node.layer)](widen(boxes[node.inputs[0]])).flatten().nonzero().flatten()
        if len(entry):
            stages.append(folder.stage(node, entry, stages))
    classes = torch.arange(network.num_classes, device=folder.device)
    unit = torch.eye(network.num_classes, dtype=torch.float64, device=folder.device)
    rows = Rows.of(
        sample=torch.zeros_like(classes),
        shape=(network.num_classes,),
        coefficient=unit[label] - unit,
        offset=torch.zeros_like(unit[0]),
    )
    margins = folder.affine(network.output_name, rows, stages)
    return Fold(stages=tuple(stages), margins=margins, radius=boxes["input"].radius.flatten().to(dtype))


@dataclass(frozen=True, kw_only=True)
class _Folder:
    network: Network
    boxes: Mapping[str, Box]
    relaxations: Mapping[str, Relaxation]
    dtype: torch.dtype

    @property
    def device(self) -> torch.device:
        return self.boxes["input"].centre.device

    def stage(self, node: Node, entry: Tensor, earlier: list[Stage]) -> Stage:
        lines = self.relaxations[node.name]
        assert isinstance(lines, Lines)
        upper_slope, upper_offset, lower_slope = (
            values.flatten()[entry, None].to(self.dtype)
            for values in (lines.upper_slope, lines.upper_offset, lines.lower_slope)
        )
        parts = []
        for chunk in entry.split(ROW_CHUNK):
            sign = torch.ones_like(chunk, dtype=torch.float64)
            reading = Reading(network=self.network, relaxations={}, errors={})
            start, rows = seed(reading, node.inputs[0], torch.zeros_like(chunk), chunk, sign)
            parts.append(self.affine(start, rows, earlier))
        affine = Affine(
            at_input=torch.cat([part.at_input for part in parts]),
            at_hidden=torch.cat([part.at_hidden for part in parts]),
            offset=torch.cat([part.offset for part in parts]),
        )
        return Stage(
            node=node.name,
            entry=entry,
            start=affine.at_hidden.shape[1],
            affine=affine,
            upper_slope=upper_slope,
            upper_offset=upper_offset,
            lower_slope=lower_slope,
            floor=floor_of(node),
            input_matrix=compressed(affine.at_input),
            input_transpose=compressed(affine.at_input.T),
            hidden_matrix=compressed(affine.at_hidden),
            hidden_transpose=compressed(affine.at_hidden.T),
        )

    def affine(self, start: str, rows: Rows, stages: list[Stage]) -> Affine:
        """Rows at node `start` as functionals of the perturbation and the outputs of the open neurons of `stages`."""
        found: dict[str, Tensor] = {}

        def stop(reading: Reading, layer: nn.Module, node: Node, rows: Rows) -> tuple[Rows]:
            stage = next((stage for stage in stages if stage.node == node.name), None)
            lines = self.relaxations[node.name]
            assert isinstance(lines, Lines)
            slope = lines.upper_slope
            if stage is not None:
                found[node.name] = rows.dense().coefficient.flatten(1).index_select(1, stage.entry)
                slope = slope.flatten(1).index_fill(1, stage.entry, 0.0).reshape(slope.shape)
            return (replace(rows, coefficient=rows.coefficient * rows.at(slope)),)

        rules: dict[type[nn.Module], Rule] = {**BACKWARD, **dict.fromkeys(FOLDABLE, stop)}
        reading = Reading(network=self.network, relaxations={}, errors={})
        at_input = to_input(reading, rows, start=start, rules=rules).dense()
        box = self.boxes["input"]
        hidden = [
            found[stage.node] if stage.node in found else at_input.offset.new_zeros(len(rows.offset), len(stage.entry))
            for stage in stages
        ]
        return Affine(
            at_input=(at_input.coefficient.flatten(1) * box.radius.flatten()).to(self.dtype),
            at_hidden=torch.cat([at_input.offset.new_zeros(len(rows.offset), 0), *hidden], dim=1).to(self.dtype),
            offset=(at_input.offset + at_input.coefficient.flatten(1) @ box.centre.flatten()).to(self.dtype),
        )


def compressed(matrix: Tensor) -> Tensor:
    """The matrix in compressed rows where it is sparse, else contiguous."""
    if matrix.numel() and (matrix != 0).sum() < SPARSE_BELOW * matrix.numel():
        return matrix.to_sparse_csr()
    return matrix.contiguous()
