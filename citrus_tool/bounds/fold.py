"""A piecewise linear network over one box, with every decided neuron folded away.

Over a box most ReLUs are decided: identity or zero, or nearly so. What is left is an affine map from the box's
perturbation v = u / radius, |v| <= 1, and the outputs h of the few open neurons to the open neurons' inputs z and to
the margins:

    z = A v + B h + b (B strictly lower triangular by stages)    h = max(z, floor z)    margins = A' v + B' h + b'

Bounds are optimised on this small system (bounds/ascent.py) instead of on the layers: the same bounds as the
backward rules give, for a fraction of the operations. It is rounded like any floating-point computation and
certifies nothing; claims are re-evaluated by the rules of bounds/linear.py.

The bounds are those of alpha-CROWN (Xu et al., ICLR 2021) and beta-CROWN (Wang et al., NeurIPS 2021); the folding is
this project's.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from citrus_tool.bounds.linear import BACKWARD, RelaxedNetwork, concretise, seed, to_input
from citrus_tool.bounds.relaxation import OPEN, RELAXATIONS, Lines
from citrus_tool.bounds.rounding import widen
from citrus_tool.bounds.rows import Rows
from citrus_tool.network import Network, Node, Rule
from citrus_tool.threat import Box

FOLDABLE: tuple[type[nn.Module], ...] = (nn.ReLU, nn.LeakyReLU)
"""The nonlinear layers that are a multiple of the identity on either side of 0."""

SPARSE_BELOW = 0.2
"""The share of nonzeros below which a matrix is kept in compressed rows: its products are faster so (measured on
ConvSmall, one CPU core)."""

NEGLIGIBLE = 1e-9
"""The share of the largest entry below which one is dropped: it changes no bound, and denormal numbers are slow."""

ROW_CHUNK = 256
"""Functionals carried to the input together while folding: bounds the memory of their coefficients."""

NEARLY = 1e-4
"""The share of its node's largest bound up to which a neuron's wrong side counts as nothing: it is folded away, and the
bounds pay that much."""


def foldable(network: Network) -> bool:
    """Whether the network has nonlinear layers, all of them in FOLDABLE."""
    kinds = {type(node.layer) for node in network.nodes} & RELAXATIONS.keys()
    return bool(kinds) and kinds <= set(FOLDABLE)


def foldable_nodes(network: Network) -> tuple[Node, ...]:
    """The nodes in FOLDABLE, in topological order."""
    return tuple(node for node in network.nodes if isinstance(node.layer, FOLDABLE))


def floor_of(layer: nn.Module) -> float:
    """Slope of a foldable layer left of 0."""
    return float(layer.negative_slope) if isinstance(layer, nn.LeakyReLU) else 0.0


@dataclass(frozen=True, kw_only=True)
class Settled:
    """What a nonlinear node is where it is not open: slope z <= f(z) <= slope z + spread; (1, *shape) each.

    `open` (1, *shape) are the neurons that this does not describe.
    """

    open: Tensor
    slope: Tensor
    spread: Tensor

    @staticmethod
    def of(node: Node, box: Box) -> Settled:
        """Of a foldable node, `box` being what `relax` found for its input.

        Beside the neurons whose sign is known, those whose wrong side is NEARLY nothing count as settled.
        """
        lower, upper = widen(box).lower, widen(box).upper
        floor = floor_of(node.layer)
        positive = upper > -lower
        spread = (1 - floor) * torch.minimum(upper, -lower)  # the function less its line, at the end of the wrong side
        allowed = NEARLY * torch.maximum(upper.abs(), lower.abs()).amax()
        return Settled(
            open=OPEN[type(node.layer)](widen(box)) & ~(spread <= allowed),
            slope=torch.full_like(lower, floor).masked_fill(positive, 1.0),
            spread=widen(Box(centre=spread.clamp(min=0), radius=torch.zeros_like(spread))).upper,
        )


@dataclass(frozen=True, kw_only=True)
class Functionals:
    """R affine functionals of the perturbation v and the open neurons' outputs h.

    `at_input` (R, d), `at_hidden` (R, neurons of the stages before them), `offset` (R,).
    """

    at_input: Tensor
    at_hidden: Tensor
    offset: Tensor


@dataclass(frozen=True, kw_only=True)
class InputPlanes:
    """Planes over the box, h <= slope v + offset, above the neurons of a stage that sees the input alone.

    Attributes:
        slope: (U, d) and its transpose, as the optimiser multiplies them.  offset: (U, 1).
        share: (U, d) uint8: slope over the neuron's own, in units of 1 / GRID.
        claimed_slope: (d, U) the same in float64, in the perturbation u.
        claimed_offset: (U,) with which the planes hold in real arithmetic.
        claimed_size: (U,) bounds of |slope_j . u| over the box.
    """

    slope: tuple[Tensor, Tensor]
    offset: Tensor
    share: Tensor
    claimed_slope: Tensor
    claimed_offset: Tensor
    claimed_size: Tensor


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The open neurons of one nonlinear node, numbers `start` to `stop` of the folded system.

    Attributes:
        node: the node's name.  source: its input node's.
        entry: (U,) the neurons' flat indices in the node's value.
        base: the first neuron of the system that the inputs may depend on; its number in `inputs` is 0.
        inputs: the functionals that give their inputs z.
        at_input, at_hidden: the matrices of `inputs` as the optimiser multiplies them, each with its transpose.
        input_planes: planes that stand in place of the lines above.
    """

    node: str
    source: str
    entry: Tensor
    start: int
    inputs: Functionals
    at_input: tuple[Tensor, Tensor]
    at_hidden: tuple[Tensor, Tensor]
    base: int = 0
    input_planes: InputPlanes | None = None

    @property
    def stop(self) -> int:
        """One past the last neuron."""
        return self.start + len(self.entry)

    @property
    def range(self) -> slice:
        """The stage's neurons among all."""
        return slice(self.start, self.stop)

    @property
    def earlier(self) -> slice:
        """The neurons that the inputs may depend on."""
        return slice(self.base, self.start)


@dataclass(frozen=True, kw_only=True)
class Twins:
    """Open neurons that several systems side by side share, in the network's first nonlinear layer.

    Their inputs see the perturbation through the same row of weights: z_m = t + b_m with one t = a v for all members,
    b_m the input without a perturbation. So what stands in place of their outputs need not hold for each alone: for
    coefficients w_m of the outputs and any slopes nu_m,

        sum_m w_m h(t + b_m)  >=  sum_m nu_m (t + b_m)  +  min over t of sum_m (w_m h(t + b_m) - nu_m (t + b_m)),

    and the minimum of this piecewise linear function of one number is at an end of its range, or where some z_m is 0.

    Attributes:
        row: (M, C) the members' neurons in the joint system, its number of neurons where a member has none.
        place: (U + 1,) which twins a neuron belongs to, C if to none.
        single: (U, 1) 1 for neurons that are no twins, else 0.
        t: (P, C) the P = M + 2 points where the minimum can be: the ends, then each member's zero.
        z, h: (P, M, C, 1) inputs and outputs there, 0 where a member has none.
        terms: the pairs (p, m) for which they are not all 0.
    """

    row: Tensor
    place: Tensor
    single: Tensor
    t: Tensor
    z: Tensor
    h: Tensor
    terms: tuple[tuple[int, int], ...]

    @staticmethod
    def of(firsts: Sequence[Stage], shift: Tensor, floor: Tensor) -> Twins | None:
        """Those of the members' first stages, in a system with neurons of these `shift` (U, 1) and `floor` (U,)."""
        entry, owners = torch.unique(torch.cat([stage.entry for stage in firsts]), return_counts=True)
        entry = entry[owners > 1]
        if not len(entry):
            return None
        count, members, neurons = len(entry), len(firsts), len(floor)
        row = torch.full((members, count), neurons, device=entry.device)
        reach = floor.new_zeros(count)
        for member, stage in enumerate(firsts):
            where = torch.searchsorted(entry, stage.entry).clamp(max=count - 1)
            mine = (entry[where] == stage.entry).nonzero().flatten()
            row[member, where[mine]] = mine + stage.start
            reach[where[mine]] = stage.inputs.at_input[mine].abs().sum(1)
        place = torch.full((neurons + 1,), count, device=entry.device)
        has = row < neurons
        place[row[has]] = torch.arange(count, device=entry.device).expand(members, -1)[has]
        b = torch.cat([shift[:, 0], shift.new_zeros(1)])[row]
        left = torch.cat([floor, floor.new_zeros(1)])[row]
        t = torch.cat([-reach[None], reach[None], torch.where(has, -b, reach)])
        z = torch.where(has, t[:, None] + b, 0.0)
        z[torch.arange(members) + 2, torch.arange(members)] = 0.0
        h = torch.maximum(z, left * z)
        used = (z != 0).any(2)
        return Twins(
            row=row,
            place=place,
            single=(place[:-1] == count).to(floor.dtype)[:, None],
            t=t,
            z=z[..., None],
            h=h[..., None],
            terms=tuple((p, m) for p, m in used.nonzero().tolist()),
        )


@dataclass(frozen=True, kw_only=True)
class Fold:
    """The folded system of one box (module docstring); U open neurons.

    Attributes:
        stages: in topological order.
        margins: rows f_y - f_c for every class c; zero at the true class.
        radius: (d,) of the box.
        floor: (U,) slope left of 0, the least slope of a line below.
        lower_slope: (U, 1) CROWN's line below.
        upper_slope, upper_offset: (U, 1) the line above.
        shift: (U, 1) the offset of every neuron's input.
        twins: of systems side by side, if they share any.
    """

    stages: tuple[Stage, ...]
    margins: Functionals
    radius: Tensor
    floor: Tensor
    lower_slope: Tensor
    upper_slope: Tensor
    upper_offset: Tensor
    shift: Tensor
    twins: Twins | None = None

    @property
    def neurons(self) -> int:
        """Number of open neurons, U."""
        return len(self.floor)

    def before(self, count: int) -> Fold:
        """The first `count` stages alone: the system that the next stage's inputs are functionals of."""
        stages = self.stages[:count]
        stop = stages[-1].stop if stages else 0
        parts = {
            name: getattr(self, name)[:stop]
            for name in ("floor", "lower_slope", "upper_slope", "upper_offset", "shift")
        }
        return replace(self, stages=stages, **parts)


def beside(systems: Sequence[Fold], first: str) -> Fold:
    """Systems over the same perturbation as one: their neurons one system after the other.

    They share v, and the twins among the neurons of `first`, the network's first nonlinear node. `margins` are those of
    the first system, padded; targets of the joint system are built from the systems' own.
    """
    stages: list[Stage] = []
    base = 0
    for system in systems:
        stages += [replace(s, base=s.base + base, start=s.start + base) for s in system.stages]
        base += system.neurons
    lead = systems[0]
    blank = lead.margins.at_hidden.new_zeros(len(lead.margins.offset), base - lead.neurons)
    shift, floor = torch.cat([system.shift for system in systems]), torch.cat([system.floor for system in systems])
    shared = [stage for stage in stages if stage.node == first and stage.input_planes is None]
    return Fold(
        stages=tuple(stages),
        margins=replace(lead.margins, at_hidden=torch.cat([lead.margins.at_hidden, blank], dim=1)),
        radius=lead.radius,
        floor=floor,
        lower_slope=torch.cat([system.lower_slope for system in systems]),
        upper_slope=torch.cat([system.upper_slope for system in systems]),
        upper_offset=torch.cat([system.upper_offset for system in systems]),
        shift=shift,
        twins=Twins.of(shared, shift, floor) if len(shared) == len(systems) > 1 else None,
    )


def fold(relaxed: RelaxedNetwork, label: int, *, like: Fold | None = None, dtype: torch.dtype = torch.float32) -> Fold:
    """Folds a network over one box.

    Args:
        relaxed: of one input (batch of 1), as `crown.relax` gives it; the network in float64 and `foldable`.
        label: the true class.
        like: the fold of a larger box of the same network, in `dtype`; stages before the first one whose open neurons
            differ are taken from it.
        dtype: of the result.
    """
    known = list(like.stages) if like is not None else []
    nodes = foldable_nodes(relaxed.network)
    settled = {node.name: Settled.of(node, relaxed.boxes[node.inputs[0]]) for node in nodes}
    folder = _Folder(relaxed=relaxed, settled=settled)
    stages: list[Stage] = []
    lines: list[Lines] = []
    floors: list[float] = []
    for node in nodes:
        entry = folder.settled[node.name].open.flatten().nonzero().flatten()
        if len(entry):
            if not (known and known[0].node == node.name and torch.equal(known[0].entry, entry)):
                known = [folder.stage(node, entry, stages, dtype)]
            stages.append(known.pop(0))
            lines.append(folder.lines(node))
            floors.append(floor_of(node.layer))
    radius = relaxed.box.radius.flatten().to(dtype)

    def gathered(values: Sequence[Tensor]) -> Tensor:
        parts = [value.flatten()[stage.entry].to(dtype) for value, stage in zip(values, stages, strict=True)]
        return torch.cat([radius.new_zeros(0), *parts])[:, None]

    return Fold(
        stages=tuple(stages),
        margins=folder.margins(label, stages, dtype),
        radius=radius,
        floor=torch.cat(
            [radius.new_zeros(0), *(radius.new_full((len(s.entry),), f) for s, f in zip(stages, floors, strict=True))]
        ),
        lower_slope=gathered([line.lower_slope for line in lines]),
        upper_slope=gathered([line.upper_slope for line in lines]),
        upper_offset=gathered([line.upper_offset for line in lines]),
        shift=torch.cat([radius.new_zeros(0), *(stage.inputs.offset for stage in stages)])[:, None],
    )


@dataclass(frozen=True, kw_only=True)
class _Folder:
    relaxed: RelaxedNetwork
    settled: Mapping[str, Settled]

    def lines(self, node: Node) -> Lines:
        lines = self.relaxed.relaxations[node.name]
        assert isinstance(lines, Lines)
        return lines

    def stage(self, node: Node, entry: Tensor, earlier: list[Stage], dtype: torch.dtype) -> Stage:
        affine = RelaxedNetwork(network=self.relaxed.network)
        parts = []
        for chunk in torch.split(entry, ROW_CHUNK):
            sign = torch.ones_like(chunk, dtype=torch.float64)
            start, rows = seed(affine, node.inputs[0], torch.zeros_like(chunk), chunk, sign)
            parts.append(self.functionals(start, rows, earlier, dtype))
        inputs = Functionals(
            at_input=torch.cat([part.at_input for part in parts]),
            at_hidden=torch.cat([part.at_hidden for part in parts]),
            offset=torch.cat([part.offset for part in parts]),
        )
        return Stage(
            node=node.name,
            source=node.inputs[0],
            entry=entry,
            start=inputs.at_hidden.shape[1],
            inputs=inputs,
            at_input=(compressed(inputs.at_input), compressed(inputs.at_input.T)),
            at_hidden=(compressed(inputs.at_hidden), compressed(inputs.at_hidden.T)),
        )

    def margins(self, label: int, stages: list[Stage], dtype: torch.dtype) -> Functionals:
        network = self.relaxed.network
        rows = margin_rows(network, label, torch.arange(network.num_classes), self.relaxed.box)
        found = self.functionals(network.output_name, rows, stages, dtype)
        return replace(found, offset=found.offset - self.rounding(rows).to(dtype))

    def rounding(self, rows: Rows) -> Tensor:
        """(R,) what claims of rows at the output will lose to runs of the file, by CROWN's lines."""
        relaxed, start = self.relaxed, self.relaxed.network.output_name
        if not relaxed.file_errors:
            return torch.zeros_like(rows.offset)
        bounds = [
            concretise(one, to_input(one, rows, start=start), one.box).offset
            for one in (replace(relaxed, file_errors={}), relaxed)
        ]
        return bounds[0] - bounds[1]

    def functionals(self, start: str, rows: Rows, stages: list[Stage], dtype: torch.dtype) -> Functionals:
        """Rows at node `start` in terms of the perturbation and of the open neurons of `stages`."""
        entries = {stage.node: stage.entry for stage in stages}
        found: dict[str, Tensor] = {}

        def stop(relaxed: RelaxedNetwork, layer: nn.Module, node: Node, rows: Rows) -> tuple[Rows]:
            slope = self.settled[node.name].slope
            if node.name in entries:
                found[node.name] = rows.dense().coefficient.flatten(1).index_select(1, entries[node.name])
                slope = slope.flatten(1).index_fill(1, entries[node.name], 0.0).reshape(slope.shape)
            return (replace(rows, coefficient=rows.coefficient * rows.at(slope)),)

        rules: dict[type[nn.Module], Rule] = {**BACKWARD, **dict.fromkeys(FOLDABLE, stop)}
        affine = RelaxedNetwork(network=self.relaxed.network)
        end = to_input(affine, rows, start=start, rules=rules).dense()
        coefficient, box = end.coefficient.flatten(1), self.relaxed.box
        blank = coefficient.new_zeros(len(coefficient), 0)
        hidden = [found.get(s.node, blank.new_zeros(len(coefficient), len(s.entry))) for s in stages]
        return Functionals(
            at_input=(coefficient * box.radius.flatten()).to(dtype),
            at_hidden=torch.cat([blank, *hidden], dim=1).to(dtype),
            offset=(end.offset + coefficient @ box.centre.flatten()).to(dtype),
        )


def margin_rows(network: Network, label: int, classes: Tensor, box: Box) -> Rows:
    """Rows f_label - f_c at the network's output for every c in `classes` (R,), all of sample 0."""
    unit = torch.eye(network.num_classes, dtype=box.centre.dtype, device=box.centre.device)
    coefficient = unit[label] - unit[classes]
    return Rows.of(
        sample=torch.zeros_like(classes, device=unit.device),
        shape=(network.num_classes,),
        coefficient=coefficient,
        offset=torch.zeros_like(coefficient[:, 0]),
    )


def compressed(matrix: Tensor) -> Tensor:
    """The matrix (R, N) in compressed rows where it is sparse, else contiguous; without negligible entries."""
    if not matrix.numel():
        return matrix
    matrix = torch.where(matrix.abs() > NEGLIGIBLE * matrix.abs().amax(), matrix, 0.0)
    if (matrix != 0).sum() >= SPARSE_BELOW * matrix.numel():
        return matrix.contiguous()
    return sparse(matrix)


def sparse(matrix: Tensor) -> Tensor:
    """The matrix (R, N) in compressed rows."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return matrix.to_sparse_csr()
