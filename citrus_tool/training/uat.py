"""UAT (Shafahi et al. 2020, "Universal Adversarial Training", algorithm 3): one persistent perturbation for all inputs.

Each batch lowers the loss at x + delta in the weights and raises it, clipped at beta for each input, in delta by one
signed step; delta lives in B(0, eps) from batch to batch.

Differs from the paper in: (1) Adam, not SGD, moves the weights; (2) while eps ramps, delta is cut to the current ball;
(3) the weights' loss is not clipped.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from citrus_tool.attacks.pgd import ATTACKED
from citrus_tool.choices.recipe import Recipe
from citrus_tool.network import Network, walk
from citrus_tool.training.batch_norm_statistics import CLEAN
from citrus_tool.training.method import Batch, LossParts

DELTA = "delta"
"""Name of the carried perturbation(s), (1 or classes, C, H, W)."""


def uat(
    network: Network, batch: Batch, eps: float, tau: float, recipe: Recipe, generator: torch.Generator
) -> LossParts:
    """Cross entropy at x + delta; carries delta, 0 at first. tau and generator play no part."""
    return universal_loss(network, batch, torch.zeros_like(batch.labels), 1, eps, recipe)


def universal_loss(network: Network, batch: Batch, owner: Tensor, count: int, eps: float, recipe: Recipe) -> LossParts:
    """The loss at x + delta[owner] and the next delta; owner (n,) says which of the `count` perturbations is whose.

    `eps` is in pixel space. A perturbation that owns no input of the batch stays as it is.
    """
    delta = carried(batch, count, eps)
    loss = F.cross_entropy(walk(network, CLEAN, batch.x + delta[owner]), batch.labels)
    stepped = ascend(network, batch, delta, owner, eps, recipe)
    return LossParts(loss=loss, parts={"loss": loss.detach()}, carried={DELTA: stepped})


def carried(batch: Batch, count: int, eps: float) -> Tensor:
    """The `count` perturbations (count, C, H, W) that the batch brings along, 0 at first, cut to B(0, eps).

    eps is in pixel space.
    """
    return batch.carried.get(DELTA, batch.x.new_zeros(count, *batch.x.shape[1:])).clamp(-eps, eps)


def ascend(network: Network, batch: Batch, delta: Tensor, owner: Tensor, eps: float, recipe: Recipe) -> Tensor:
    """The perturbations delta (count, C, H, W) after one signed step of uat.step * eps (pixel space), detached.

    It raises the clipped losses of their inputs; owner (n,) says whose is which.
    """
    moving = delta.clone().requires_grad_(True)
    with torch.enable_grad():
        each = F.cross_entropy(walk(network, ATTACKED, batch.x + moving[owner]), batch.labels, reduction="none")
        (gradient,) = torch.autograd.grad(each.clamp(max=recipe.uat.clip).sum(), moving)
    return (delta + recipe.uat.step * eps * gradient.sign()).clamp(-eps, eps).detach()
