"""CROWN-IBP (Zhang et al. 2020, "Towards Stable and Efficient Training of Verifiably Robust Neural Networks").

Interval bounds of every hidden layer give linear relaxations; one backward pass carries the margins' rows to the input.
The loss is the cross entropy of beta * (these margins) + (1 - beta) * (IBP's), and beta falls from 1 to 0 while eps
rises to its target, their section 3.3.

Differs from the paper in: (1) beta = 1 - eps / (target eps) instead of a schedule of its own; (2) lower slopes are the
adaptive ones of CROWN, not the paper's choice by data set; (3) boxes are not cut to [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from citrus_tool.bounds.linear import RelaxedNetwork, to_input
from citrus_tool.bounds.relaxation import RELAXATIONS, Lines, Relaxation
from citrus_tool.bounds.rows import Rows
from citrus_tool.choices.recipe import Recipe
from citrus_tool.network import INPUT, Network, Node, Pointwise, walk
from citrus_tool.threat import Box
from citrus_tool.training.interval_margins import (
    TRAINING,
    box_margins,
    inside_domain,
    robust_cross_entropy,
    uniform_box,
)
from citrus_tool.training.method import Batch, LossParts


def crown_ibp(
    network: Network, batch: Batch, eps: float, tau: float, recipe: Recipe, generator: torch.Generator
) -> LossParts:
    """Cross entropy of the mixed margins on B(x, eps); tau and generator play no part."""
    boxes: dict[str, Box] = {}
    margins = box_margins(network, uniform_box(batch.x, eps), batch.labels, record=boxes)
    beta = 1 - eps / recipe.eps
    if beta > 0:
        margins = beta * crown_margins(network, boxes, batch.labels) + (1 - beta) * margins
    loss = robust_cross_entropy(margins).mean()
    return LossParts(loss=loss, parts={"loss": loss.detach()}, boxes=boxes)


def crown_margins(network: Network, boxes: Mapping[str, Box], labels: Tensor) -> Tensor:
    """CROWN's lower bounds (n, c) of f_y - f_c from known boxes of INPUT and of every relaxed node's input; 0 at y.

    Differentiable in the weights. A plain training bound: nothing is rounded outward.
    """
    centre, classes = boxes[INPUT].centre, network.num_classes
    nonlinear = [node for node in network.nodes if type(node.layer) in RELAXATIONS]
    if any(name not in boxes for node in nonlinear for name in node.inputs):  # a network that ends in a nonlinear layer
        boxes = {INPUT: boxes[INPUT]}
        walk(network, TRAINING, boxes[INPUT], record=boxes)
    relaxations = {node.name: _relax(node, [boxes[name] for name in node.inputs]) for node in nonlinear}
    one_hot = torch.eye(classes, dtype=centre.dtype, device=centre.device)
    rows = Rows.of(
        sample=torch.arange(len(labels), device=centre.device).repeat_interleave(classes),
        shape=(classes,),
        coefficient=(one_hot[labels][:, None] - one_hot).flatten(0, 1),
        offset=centre.new_zeros(len(labels) * classes),
    )
    relaxed = RelaxedNetwork(network=network, relaxations=relaxations)
    planes = to_input(relaxed, rows, start=network.output_name).dense()
    coefficient = planes.coefficient.reshape(len(labels), classes, -1)
    lowest = (
        coefficient @ centre.flatten(1)[:, :, None] - coefficient.abs() @ boxes[INPUT].radius.flatten(1)[:, :, None]
    )
    return lowest.squeeze(2) + planes.offset.reshape(len(labels), classes)


def _relax(node: Node, inputs: Sequence[Box]) -> Relaxation:
    """The relaxation of a nonlinear node over its inputs' boxes, with finite gradients where the box has no width."""
    boxes = [Box(centre=box.centre, radius=box.radius.expand_as(box.centre)) for box in inputs]
    if isinstance(node.layer, Pointwise):
        boxes = [inside_domain(node.layer, box) for box in boxes]
    if not isinstance(node.layer, nn.ReLU):
        relaxation: Relaxation = RELAXATIONS[type(node.layer)](node.layer, *boxes)
        return relaxation
    (box,) = boxes
    lower, upper = box.lower, box.upper
    unstable = (lower < 0) & (upper > 0)
    active = (lower >= 0).to(lower.dtype)
    chord = torch.where(unstable, upper, 0.0) / torch.where(unstable, upper - lower, 1.0)
    return Lines(
        lower_slope=torch.where(unstable, (upper > -lower).to(lower.dtype), active),
        upper_slope=torch.where(unstable, chord, active),
        upper_offset=torch.where(unstable, -chord * lower, 0.0),
    )
