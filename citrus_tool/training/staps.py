"""STAPS (Mao et al. 2023, "Connecting Certified and Adversarial Training", section 3.5): TAPS on SABR's small boxes.

Differs from the paper in: as sabr.py and taps.py do from theirs.
"""

from __future__ import annotations

import torch

from citrus_tool.choices.recipe import Recipe
from citrus_tool.network import Network
from citrus_tool.training.adversarial import attack
from citrus_tool.training.interval_margins import uniform_box
from citrus_tool.training.method import Batch, LossParts
from citrus_tool.training.taps import taps_loss


def staps(
    network: Network, batch: Batch, eps: float, tau: float, recipe: Recipe, generator: torch.Generator
) -> LossParts:
    """TAPS on B(x + v, tau) for the PGD perturbation v in B(0, eps - tau)."""
    v = attack(network, batch, eps - tau, recipe, generator)
    return taps_loss(network, uniform_box(batch.x + v, tau), batch.labels, recipe.taps, generator)
