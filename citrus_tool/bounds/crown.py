"""CROWN: linear lower bounds of every margin in the perturbation u, for a batch of boxes.

Zhang et al. 2018, "Efficient Neural Network Robustness Certification with General Activation Functions", theorem 3.2
with the adaptive lower slopes of section 3.4.
Differs from the paper in: (1) any graph of canonical layers, not a chain; (2) with intermediate="intersect", rows are
computed only for the neurons that interval bounds leave open, and intersected with these (boxes after a refined layer
are propagated from it); (3) float64 with an outward rounding margin everywhere (docs/soundness.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor, nn

from citrus_tool.bounds.float32 import HOPELESS, FileErrors, grown
from citrus_tool.bounds.linear import (
    BACKWARD,
    LinearBounds,
    RelaxedNetwork,
    backward_error,
    concretise,
    rival_rows,
    seed,
    to_input,
)
from citrus_tool.bounds.pools import MaxPoolRelaxation, planes_of_pool, reference, rivals
from citrus_tool.bounds.relaxation import BILINEAR, OPEN, RELAXATIONS, Relaxation
from citrus_tool.bounds.rounding import OUTWARD_INTERVAL, exact_products, outward_margins, widen
from citrus_tool.bounds.rows import Rows
from citrus_tool.choices import Intermediate
from citrus_tool.network import (
    INPUT,
    Add,
    Affine,
    Concat,
    MatMul,
    Multiply,
    Network,
    Node,
    Pad,
    Pointwise,
    Reshape,
    Rule,
    Rules,
    Select,
    Slice,
    Transpose,
    find_rule,
    size,
    walk,
)
from citrus_tool.threat import Box

CPU_ROW_BYTES = 2 * 2**20
"""Bytes of one coefficient tensor of a chunk of rows on the CPU. Larger ones leave the cache (ConvSmall: 1.5 times as
slow at 8 MB), in smaller ones calls cost more than what they compute (CNN7, resnet_2b: 1.3 times as slow at 1 MB)."""

ROW_BYTES = 256 * 2**20
"""Bytes of one coefficient tensor of a chunk of rows on an accelerator, where few large launches win; about six such
tensors are alive at once."""


@dataclass(frozen=True, kw_only=True)
class LinearMargins:
    """Bounds of the margins f_y - f_c of a batch of boxes.

    Attributes:
        lower: (n, c) lower bounds over the box, the larger of IBP's and CROWN's; +inf at the true class.
        coefficient: (n, c, *input_shape) and
        offset: (n, c): margin_c(centre + u) >= <coefficient, u> + offset for every |u| <= radius. Where interval
            bounds already decide a label (`skip_decided`), the plane is that constant bound with coefficient 0. At the
            true class coefficient 0 and offset +inf: it can never fool.
    """

    lower: Tensor
    coefficient: Tensor
    offset: Tensor

    @property
    def verified(self) -> Tensor:
        """(n,) bool: every margin is proven positive (ties and unknowns are not)."""
        return self.lower.amin(1) > 0


class Exactness(IntEnum):
    """How good the interval bounds of a node are without any relaxation (ordered from best to worst)."""

    POINTWISE = 0  # every entry is a function of an input entry of its own
    ENTRYWISE = 1  # each entry's bounds are attained, though not together
    LOOSE = 2


def _moved(layer: nn.Module, *values: Exactness) -> Exactness:
    return max(values)


def _mixed(layer: nn.Module, value: Exactness) -> Exactness:
    return Exactness.ENTRYWISE if value is Exactness.POINTWISE else Exactness.LOOSE


def _joined(layer: nn.Module, *values: Exactness) -> Exactness:
    return max(*values, Exactness.ENTRYWISE)


def _selected(layer: Select, value: Exactness) -> Exactness:
    """Entries that are taken twice move together, so that sums of them are no longer bounded exactly."""
    taken = layer.index[layer.index >= 0].tolist()
    return value if len(set(taken)) == len(taken) else _joined(layer, value)


def _monotone(layer: nn.Module, value: Exactness) -> Exactness:
    return Exactness.POINTWISE if value is Exactness.POINTWISE else Exactness.LOOSE


def _loose(layer: nn.Module, *values: Exactness) -> Exactness:
    return Exactness.LOOSE


EXACTNESS: Rules = {
    **dict.fromkeys((Affine, nn.BatchNorm1d, nn.BatchNorm2d, Reshape, Transpose, Pad, Slice), _moved),
    **dict.fromkeys((nn.Linear, nn.Conv2d, nn.AvgPool2d), _mixed),
    **dict.fromkeys((nn.ReLU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, Pointwise), _monotone),
    **dict.fromkeys((nn.MaxPool2d, Add, Multiply, MatMul), _loose),
    Concat: _joined,
    Select: _selected,
}
"""Reads where interval bounds equal CROWN's, so that rows there would be wasted."""


def crown(
    network: Network,
    box: Box,
    labels: Tensor,
    *,
    intermediate: Intermediate = "intersect",
    skip_decided: bool = True,
    target: int | None = None,
    row_bytes: int | None = None,
) -> LinearMargins:
    """CROWN margins of a batch of boxes, valid in all runs that `network.evaluation` speaks of (docs/soundness.md).

    Boxes are independent: pass only those that are still open, in batches of some tens to hundreds.

    Args:
        network: in float64, evaluation mode (`network.frozen(dtype=torch.float64)`), on the boxes' device.
        box: centre and radius (n, *input_shape) in float64: `Threat.enclosure` of inputs, or `rounding.enclose_bounds`.
        labels: (n,) true class of each box.
        intermediate: bounds of hidden neurons, by CROWN intersected with intervals, or by CROWN alone as published
            (layers before the first nonlinearity coincide).
        skip_decided: no plane for labels whose interval margin is positive already; False: planes for all labels.
        target: only this label is bounded; the others are treated like the true class, which never fools.
        row_bytes: size in bytes of the largest tensor of a chunk of rows; does not change results.
    """
    with torch.no_grad(), exact_products():
        relaxed = relax(network, box, intermediate=intermediate, row_bytes=row_bytes)
        interval = only(outward_margins(network, relaxed.boxes, relaxed.file_errors, labels), target)
        return margin_planes(relaxed, labels, interval, skip_decided=skip_decided, row_bytes=row_bytes)


def only(margins: Tensor, target: int | None) -> Tensor:
    """Margins (n, c) with +inf at every class but `target`; None leaves them as they are."""
    if target is None:
        return margins
    others = torch.arange(margins.shape[1], device=margins.device) != target
    return margins.masked_fill(others, math.inf)


def relax(
    network: Network, box: Box, *, intermediate: Intermediate = "intersect", row_bytes: int | None = None
) -> RelaxedNetwork:
    """Forward pass that bounds every node, by CROWN at the inputs of nonlinear ones, and relaxes these."""
    exactness: dict[str, Exactness] = {INPUT: Exactness.POINTWISE}
    walk(network, EXACTNESS, Exactness.POINTWISE, record=exactness)
    file_errors = FileErrors.of(network)
    boxes: dict[str, Box] = {INPUT: grown(box, file_errors.at_input(box))}
    relaxations: dict[str, Relaxation] = {}
    errors: dict[str, Tensor] = {}
    relaxed = RelaxedNetwork(
        network=network,
        boxes=boxes,
        relaxations=relaxations,
        errors=errors,
        file_errors=file_errors.found,
        region=box,
    )  # its mappings grow
    layers = {node.name: node.layer for node in network.nodes}
    refined = {INPUT}
    for node in network.nodes:
        if type(node.layer) in RELAXATIONS:
            for source in node.inputs:
                bent = source in layers and type(layers[source]) in RELAXATIONS.keys() - set(BILINEAR)
                if source not in refined and exactness[source] is Exactness.LOOSE and not bent:
                    open_entries = None if intermediate == "crown" else OPEN[type(node.layer)](boxes[source])
                    boxes[source] = refine(relaxed, source, open_entries, row_bytes=row_bytes)
                refined.add(source)
            relaxations[node.name] = relaxation_of(relaxed, node, row_bytes=row_bytes)
        inputs = [boxes[name] for name in node.inputs]
        image: Box = find_rule(OUTWARD_INTERVAL, node)(node.layer, *inputs)
        boxes[node.name] = grown(image, file_errors.at(node, *inputs))
        errors[node.name] = backward_error(network, node, *inputs)
    return relaxed


def relaxation_of(relaxed: RelaxedNetwork, node: Node, *, row_bytes: int | None = None) -> Relaxation:
    """Of a nonlinear node, from the boxes over its inputs; for max pools, also from rows through what lies before."""
    if isinstance(node.layer, nn.MaxPool2d):
        return relaxed_pool(relaxed, node, node.layer, row_bytes=row_bytes)
    boxes = (widen(relaxed.boxes[name]) for name in node.inputs)
    found: Relaxation = RELAXATIONS[type(node.layer)](node.layer, *boxes)
    return found


def relaxed_pool(
    relaxed: RelaxedNetwork, node: Node, layer: nn.MaxPool2d, *, row_bytes: int | None = None
) -> MaxPoolRelaxation:
    """Of a max pool, with CROWN's bounds of the differences that intervals leave open."""
    box = widen(relaxed.boxes[node.inputs[0]])
    chosen = reference(layer, box)
    low, high = rivals(layer, box, chosen)
    flat = chosen.expand_as(low).flatten(1)

    def bounds(mask: Tensor, sign: float) -> Tensor:
        """Lower bounds of sign times the differences of `mask` (n, entries), one after the other."""
        sample, entry = mask.nonzero(as_tuple=True)
        found = box.centre.new_empty(len(sample))

        def make(relaxed: RelaxedNetwork, samples: slice, part: slice) -> tuple[str, Rows]:
            here, place = sample[part], entry[part]
            signs = box.centre.new_full((len(here),), sign)
            return rival_rows(relaxed, node, here - samples.start, place, flat[here, place], signs)

        for part, planes in sweep(relaxed, mask, make, row_bytes):
            found[part] = planes.lower
        return found

    still = ~(high <= 0).flatten(1)
    high = high.flatten(1).masked_scatter(still, torch.minimum(high.flatten(1)[still], -bounds(still, -1.0)))
    still &= ~(high <= 0) & ~(low.flatten(1) >= 0)
    least = low.flatten(1).masked_scatter(still, torch.maximum(low.flatten(1)[still], bounds(still, 1.0)))
    return planes_of_pool(layer, box, chosen, least.reshape_as(low), high.reshape_as(low))


def refine(relaxed: RelaxedNetwork, name: str, open_entries: Tensor | None, *, row_bytes: int | None = None) -> Box:
    """The box of node `name` by CROWN.

    Args:
        open_entries: (n, *shape) bool: only these entries are computed, and intersected with the box so far; None: all
            of them, and that box is dropped.
    """
    known = relaxed.boxes[name]
    lower, upper = known.lower.flatten(1).clone(), known.upper.flatten(1).clone()
    mask = torch.ones_like(lower, dtype=torch.bool) if open_entries is None else open_entries.flatten(1)
    sample, entry = mask.nonzero(as_tuple=True)

    def both_sides(relaxed: RelaxedNetwork, samples: slice, part: slice) -> tuple[str, Rows]:
        sign = torch.ones_like(entry[part], dtype=lower.dtype)
        here, place = sample[part] - samples.start, entry[part]
        return seed(relaxed, name, here.repeat(2), place.repeat(2), torch.cat([sign, -sign]))

    found = torch.empty(2, len(sample), dtype=lower.dtype, device=lower.device)
    for part, planes in sweep(relaxed, mask, both_sides, row_bytes):
        found[:, part] = planes.lower.reshape(2, -1)
    found[1].neg_()
    if open_entries is not None:
        found[0] = torch.fmax(found[0], lower[sample, entry])  # NaN claims nothing
        found[1] = torch.fmin(found[1], upper[sample, entry])
    lower[sample, entry], upper[sample, entry] = found
    return widen(Box.from_bounds(lower.reshape(known.centre.shape), upper.reshape(known.centre.shape)))


def margin_planes(
    relaxed: RelaxedNetwork,
    labels: Tensor,
    interval: Tensor,
    *,
    skip_decided: bool = True,
    row_bytes: int | None = None,
) -> LinearMargins:
    """LinearBounds below the margins; `interval` (n, c) are known lower bounds, +inf at the true class."""
    network = relaxed.network
    n, classes = interval.shape
    hopeless = -min(HOPELESS, torch.finfo(interval.dtype).max)
    lower = torch.nan_to_num(interval, nan=hopeless, posinf=math.inf)
    offset = lower.clone()
    coefficient = relaxed.box.centre.new_zeros(n, classes, size(network.input_shape))
    wanted = ~(interval > 0) if skip_decided else interval != math.inf
    sample, label = wanted.nonzero(as_tuple=True)

    def margins(relaxed: RelaxedNetwork, samples: slice, part: slice) -> tuple[str, Rows]:
        unit = coefficient.new_zeros(part.stop - part.start, classes)
        unit.scatter_(1, labels[sample[part], None], 1.0).scatter_(1, label[part, None], -1.0)
        here, zero = sample[part] - samples.start, torch.zeros_like(unit[:, 0])
        return network.output_name, Rows.of(sample=here, shape=(classes,), coefficient=unit, offset=zero)

    for part, planes in sweep(relaxed, wanted, margins, row_bytes):
        s, c = sample[part], label[part]
        # values beyond float64, or outside a function's domain, give planes of which nothing is proven
        known = torch.isfinite(planes.lower)
        coefficient[s, c] = planes.coefficient.flatten(1).where(known[:, None], 0.0)
        offset[s, c] = planes.offset.where(known, hopeless)
        lower[s, c] = torch.maximum(lower[s, c], planes.lower.where(known, hopeless))
    return LinearMargins(lower=lower, offset=offset, coefficient=coefficient.reshape(n, classes, *network.input_shape))


def sweep(
    relaxed: RelaxedNetwork,
    mask: Tensor,
    make: Callable[[RelaxedNetwork, slice, slice], tuple[str, Rows]],
    row_bytes: int | None,
) -> Iterator[tuple[slice, LinearBounds]]:
    """Carries rows for every true entry of `mask` (n, entries) to the input, in chunks of bounded size.

    A chunk holds the entries of a range of samples, or a part of one sample's, so that what the rows gather stays
    small; its size follows from the widest coefficient that one trial row meets.

    Args:
        make: (relaxed for the samples, range of samples, range of entries among all true ones) -> node and rows.
    """
    counts = mask.sum(1).tolist()
    first = next((i for i, count in enumerate(counts) if count), None)
    if first is None:
        return
    budget = row_bytes or (CPU_ROW_BYTES if mask.device.type == "cpu" else ROW_BYTES)
    one = slice(first, first + 1)
    start, trial = make(relaxed.select(one), one, slice(0, 1))
    step = max(1, budget // widest(relaxed.select(one), trial, start=start))
    for samples, part in chunks(counts, step):
        some = relaxed.select(samples)
        start, rows = make(some, samples, part)
        yield part, concretise(some, to_input(some, rows, start=start), some.box)


def widest(relaxed: RelaxedNetwork, rows: Rows, *, start: str) -> int:
    """Bytes of the largest coefficient that `rows` have on their way to the input."""
    sizes = [rows.coefficient.nbytes]

    def watched(rule: Rule) -> Rule:
        def apply(relaxed: RelaxedNetwork, layer: nn.Module, node: Node, rows: Rows) -> tuple[Rows, ...]:
            parts: tuple[Rows, ...] = rule(relaxed, layer, node, rows)
            sizes.extend(part.coefficient.nbytes for part in parts)
            return parts

        return apply

    to_input(relaxed, rows, start=start, rules={layer: watched(rule) for layer, rule in BACKWARD.items()})
    return max(sizes)


def chunks(counts: list[int], step: int) -> Iterator[tuple[slice, slice]]:
    """(range of samples, range of entries) for `counts[i]` entries of sample i, about `step` entries at a time."""
    first = begin = end = 0
    for sample, count in enumerate(counts):
        if end > begin and end + count - begin > step:
            yield slice(first, sample), slice(begin, end)
            first, begin = sample, end
        end += count
        while end - begin > step:  # only one sample is left in the chunk
            yield slice(sample, sample + 1), slice(begin, begin + step)
            first, begin = sample, begin + step
    if end > begin:
        yield slice(first, len(counts)), slice(begin, end)
