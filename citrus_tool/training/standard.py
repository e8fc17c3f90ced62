"""Standard training: cross entropy of clean inputs. Every method starts with it while eps is 0 (warm-up)."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from citrus_tool.choices.recipe import Recipe
from citrus_tool.network import Network, walk
from citrus_tool.training.batch_norm_statistics import CLEAN
from citrus_tool.training.method import Batch, LossParts


def standard(
    network: Network, batch: Batch, eps: float, tau: float, recipe: Recipe, generator: torch.Generator
) -> LossParts:
    """Mean cross entropy of the batch; eps, tau, recipe and generator play no part."""
    loss = F.cross_entropy(walk(network, CLEAN, batch.x), batch.labels)
    return LossParts(loss=loss, parts={"loss": loss.detach()})
