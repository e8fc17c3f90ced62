"""CITRUS + SI (Xu and Singh, section 5.3 and Table 3): CITRUS that also meets each input's own perturbation (j = i).

Differs from the paper in: as citrus.py does.
"""

from __future__ import annotations

import dataclasses

import torch

from citrus_tool.choices.recipe import Recipe
from citrus_tool.network import Network
from citrus_tool.training.citrus import citrus
from citrus_tool.training.method import Batch, LossParts


def citrus_si(
    network: Network, batch: Batch, eps: float, tau: float, recipe: Recipe, generator: torch.Generator
) -> LossParts:
    """CITRUS with `same_input`, whatever the recipe says of it."""
    return citrus(network, batch, eps, tau, dataclasses.replace(recipe, same_input=True), generator)
