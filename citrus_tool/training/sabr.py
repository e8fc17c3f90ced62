"""SABR (Mueller et al. 2022, "Certified Training: Small Boxes Are All You Need"): IBP on B(x + v, tau).

v is the PGD perturbation of x in B(0, eps - tau), so that the box lies in B(x, eps). `relu_shrink` is the paper's ReLU
shrinking (its section 4, used at CIFAR-10 2/255).

Differs from the paper in: (1) boxes are not cut to [0, 1]; (2) the number of PGD steps is the recipe's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from citrus_tool.choices.recipe import Recipe
from citrus_tool.network import Network
from citrus_tool.threat import Box
from citrus_tool.training.adversarial import attack
from citrus_tool.training.interval_margins import box_margins, robust_cross_entropy, shrinking, uniform_box
from citrus_tool.training.method import Batch, LossParts


def sabr(
    network: Network, batch: Batch, eps: float, tau: float, recipe: Recipe, generator: torch.Generator
) -> LossParts:
    """The mean loss of the small boxes around the attacked inputs."""
    v = attack(network, batch, eps - tau, recipe, generator)
    return sabr_loss(network, batch, v, tau, recipe)


def sabr_loss(network: Network, batch: Batch, v: Tensor, tau: float, recipe: Recipe) -> LossParts:
    """SABR's loss for given perturbations v (n, C, H, W)."""
    boxes: dict[str, Box] = {}
    box = uniform_box(batch.x + v, tau)
    margins = box_margins(network, box, batch.labels, record=boxes, rules=shrinking(recipe.relu_shrink))
    loss = robust_cross_entropy(margins).mean()
    return LossParts(loss=loss, parts={"loss": loss.detach()}, boxes=boxes)
