"""CC-IBP (De Palma et al. 2023, "Expressive Losses for Verified Robustness via Convex Combinations", section 4.1).

The loss is the cross entropy of alpha * (IBP's margins on B(x, eps)) + (1 - alpha) * (margins at x + v).

Differs from the paper in: (1) attack and boxes are not cut to [0, 1]; (2) PGD steps and step sizes are the recipe's.
"""

from __future__ import annotations

import torch

from citrus_tool.choices.recipe import Recipe
from citrus_tool.network import Network
from citrus_tool.training.expressive import Ends, ends
from citrus_tool.training.interval_margins import robust_cross_entropy
from citrus_tool.training.method import Batch, LossParts


def cc_ibp(
    network: Network, batch: Batch, eps: float, tau: float, recipe: Recipe, generator: torch.Generator
) -> LossParts:
    """The loss of the combined margins; tau plays no part."""
    return cc_loss(ends(network, batch, eps, recipe, generator), recipe.alpha)


def cc_loss(found: Ends, alpha: float) -> LossParts:
    """The loss of given margins."""
    loss = robust_cross_entropy(alpha * found.bound + (1 - alpha) * found.attacked).mean()
    return LossParts(loss=loss, parts={"loss": loss.detach()}, boxes=found.boxes)
