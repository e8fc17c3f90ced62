"""MTL-IBP (De Palma et al. 2023, "Expressive Losses for Verified Robustness via Convex Combinations", section 4.2).

The loss is alpha * L_ibp(x, eps) + (1 - alpha) * L(x + v).

Differs from the paper in: (1) attack and boxes are not cut to [0, 1]; (2) PGD steps and step sizes are the recipe's.
"""

from __future__ import annotations

import torch

from citrus_tool.choices.recipe import Recipe
from citrus_tool.network import Network
from citrus_tool.training.expressive import Ends, ends
from citrus_tool.training.interval_margins import robust_cross_entropy
from citrus_tool.training.method import Batch, LossParts


def mtl_ibp(
    network: Network, batch: Batch, eps: float, tau: float, recipe: Recipe, generator: torch.Generator
) -> LossParts:
    """The convex combination of the two losses; tau plays no part."""
    return mtl_loss(ends(network, batch, eps, recipe, generator), recipe.alpha)


def mtl_loss(found: Ends, alpha: float) -> LossParts:
    """The loss of given margins."""
    bound, attacked = robust_cross_entropy(found.bound).mean(), robust_cross_entropy(found.attacked).mean()
    loss = alpha * bound + (1 - alpha) * attacked
    parts = {"loss": loss.detach(), "ibp": bound.detach(), "attacked": attacked.detach()}
    return LossParts(loss=loss, parts=parts, boxes=found.boxes)
