"""CW-UAT (Benz et al. 2021, "Universal Adversarial Training with Class-Wise Perturbations"): one delta for each class.

Differs from the paper in: as uat.py does from UAT.
"""

from __future__ import annotations

import torch

from citrus_tool.choices.recipe import Recipe
from citrus_tool.network import Network
from citrus_tool.training.method import Batch, LossParts
from citrus_tool.training.uat import universal_loss


def cw_uat(
    network: Network, batch: Batch, eps: float, tau: float, recipe: Recipe, generator: torch.Generator
) -> LossParts:
    """Cross entropy at x + delta_y; carries every class's delta, 0 at first. tau and generator play no part."""
    return universal_loss(network, batch, batch.labels, network.num_classes, eps, recipe)
