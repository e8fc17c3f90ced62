"""CITRUS (Xu and Singh, "Cross-Input Certified Training for Universal Perturbations"): Definition 4, Algorithm 1.

In a group of k inputs each x_i is trained on the boxes B(x_i + v_j, tau) for every j != i, where v_j is the PGD
perturbation of x_j in B(0, eps - tau). Every box lies in B(x_i, eps).

Differs from the paper in: (1) many groups of k make one batch, and the loss is the mean over the batch's inputs of
Definition 4's sum (Algorithm 1 sums over the inputs of its one group); (2) `box_loss = "mean"` divides by the number
of boxes; (3) the last layer is elided into margins; (4) `same_input` adds j = i (the paper's CITRUS + SI, Table 3).
Boxes are not cut to [0, 1]: the threat model adds u unclipped, as the paper's certificates do.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from citrus_tool.choices.recipe import Recipe
from citrus_tool.network import Network
from citrus_tool.threat import Box
from citrus_tool.training.adversarial import attack
from citrus_tool.training.interval_margins import box_margins, robust_cross_entropy, uniform_box
from citrus_tool.training.method import Batch, LossParts


def citrus(
    network: Network, batch: Batch, eps: float, tau: float, recipe: Recipe, generator: torch.Generator
) -> LossParts:
    """Algorithm 1 on a batch of groups; `recipe` gives group_size, PGD steps, same_input and box_loss."""
    return citrus_loss(network, batch, attack(network, batch, eps - tau, recipe, generator), eps, tau, recipe)


def citrus_loss(network: Network, batch: Batch, v: Tensor, eps: float, tau: float, recipe: Recipe) -> LossParts:
    """Definition 4, averaged over the inputs, for given perturbations v (n, C, H, W); v is clamped to +-(eps - tau),
    all in pixel space.
    """
    found = centres(batch.x, v.clamp(-(eps - tau), eps - tau), recipe)
    boxes: dict[str, Box] = {}
    box = uniform_box(found.flatten(0, 1), tau)
    losses = robust_cross_entropy(box_margins(network, box, batch.labels, record=boxes))
    terms = found.shape[1] if recipe.box_loss == "sum" else 1
    loss = losses.mean() * terms
    return LossParts(loss=loss, parts={"loss": loss.detach()}, boxes=boxes, terms=terms)


def centres(x: Tensor, v: Tensor, recipe: Recipe) -> Tensor:
    """x_i + v_j (n, m, C, H, W) for the m inputs j of the group of i whose perturbations i meets."""
    others = _others(recipe.group_size, recipe.same_input).to(x.device, non_blocking=True)
    grouped = x.reshape(-1, recipe.group_size, *x.shape[1:])
    return (grouped[:, :, None] + v.reshape(grouped.shape)[:, others]).flatten(0, 1)


@lru_cache(maxsize=8)
def _others(k: int, same_input: bool) -> Tensor:
    """(k, m): for each input of a group the inputs whose perturbations it meets, all j != i, and i itself if asked."""
    return torch.tensor([[j for j in range(k) if same_input or j != i] for i in range(k)])
