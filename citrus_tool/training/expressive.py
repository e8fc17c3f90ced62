"""What MTL-IBP, CC-IBP and Exp-IBP share (De Palma et al. 2023, "Expressive Losses for Verified Robustness via Convex
Combinations"): margins under an attack, and IBP's margins on B(x, eps).

The attack's ball is `attack_ratio` * eps (2.1 at CIFAR-10 2/255 in their appendix), the box always eps.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from citrus_tool.choices.recipe import Recipe
from citrus_tool.network import Network, walk
from citrus_tool.threat import Box
from citrus_tool.training.adversarial import attack
from citrus_tool.training.batch_norm_statistics import CLEAN
from citrus_tool.training.interval_margins import box_margins, logit_margins, uniform_box
from citrus_tool.training.method import Batch


@dataclass(frozen=True, kw_only=True)
class Ends:
    """Margins f_y - f_c (n, c): `attacked` at x + v, `bound` from below on B(x, eps); 0 at the true class."""

    attacked: Tensor
    bound: Tensor
    boxes: dict[str, Box] = field(default_factory=dict)


def ends(network: Network, batch: Batch, eps: float, recipe: Recipe, generator: torch.Generator) -> Ends:
    """Both ends of the convex combination for a batch; eps in pixel space."""
    return ends_at(network, batch, attack(network, batch, recipe.attack_ratio * eps, recipe, generator), eps)


def ends_at(network: Network, batch: Batch, v: Tensor, eps: float) -> Ends:
    """The same for given perturbations v (n, C, H, W); eps in pixel space."""
    boxes: dict[str, Box] = {}
    bound = box_margins(network, uniform_box(batch.x, eps), batch.labels, record=boxes)
    attacked = logit_margins(walk(network, CLEAN, batch.x + v), batch.labels)
    return Ends(attacked=attacked, bound=bound, boxes=boxes)
