"""Exp-IBP (De Palma et al. 2023, "Expressive Losses for Verified Robustness via Convex Combinations", appendix B).

The loss of an input is L_ibp(x, eps)^alpha * L(x + v)^(1 - alpha).

Differs from the paper in: (1) attack and boxes are not cut to [0, 1]; (2) PGD steps and step sizes are the recipe's;
(3) losses below the smallest normal number count as that number, without a gradient.
"""

from __future__ import annotations

import torch

from citrus_tool.choices.recipe import Recipe
from citrus_tool.network import Network
from citrus_tool.training.expressive import Ends, ends
from citrus_tool.training.interval_margins import robust_cross_entropy
from citrus_tool.training.method import Batch, LossParts


def exp_ibp(
    network: Network, batch: Batch, eps: float, tau: float, recipe: Recipe, generator: torch.Generator
) -> LossParts:
    """The weighted geometric mean of the two losses; tau plays no part."""
    return exp_loss(ends(network, batch, eps, recipe, generator), recipe.alpha)


def exp_loss(found: Ends, alpha: float) -> LossParts:
    """The loss of given margins."""
    tiny = torch.finfo(found.bound.dtype).tiny
    bound, attacked = (robust_cross_entropy(m).clamp_min(tiny).log() for m in (found.bound, found.attacked))
    loss = torch.exp(alpha * bound + (1 - alpha) * attacked).mean()
    return LossParts(loss=loss, parts={"loss": loss.detach()}, boxes=found.boxes)
