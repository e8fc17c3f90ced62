"""PGD training (Madry et al. 2018, "Towards Deep Learning Models Resistant to Adversarial Attacks"), method `pgd`.

Differs from the paper in: (1) the attack's step shrinks (attacks/pgd.py); (2) the network is attacked with the batch
norm statistics of the clean batch and trained with the same; (3) x + v is not clipped to [0, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from citrus_tool.attacks.pgd import pgd
from citrus_tool.choices.recipe import Recipe
from citrus_tool.network import Network, walk
from citrus_tool.training.batch_norm_statistics import CLEAN
from citrus_tool.training.method import Batch, LossParts


def adversarial(
    network: Network, batch: Batch, eps: float, tau: float, recipe: Recipe, generator: torch.Generator
) -> LossParts:
    """Cross entropy at x + v for the PGD perturbation v in B(0, eps); tau plays no part."""
    loss = F.cross_entropy(walk(network, CLEAN, batch.x + attack(network, batch, eps, recipe, generator)), batch.labels)
    return LossParts(loss=loss, parts={"loss": loss.detach()})


def attack(network: Network, batch: Batch, radius: float, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """The recipe's PGD perturbations (n, C, H, W) of the batch, each in B(0, radius); radius in pixel space."""
    return pgd(
        network,
        batch.x,
        batch.labels,
        radius=radius,
        steps=recipe.pgd_steps,
        step_size=recipe.pgd_step_size,
        generator=generator,
        dtype=torch.bfloat16 if recipe.pgd_bfloat16 else None,
    )
