"""IBP training (Gowal et al. 2018, "On the Effectiveness of Interval Bound Propagation"), as Shi et al. 2021 use it.

Differs from the papers in: (1) the whole loss is the worst case's from the first step of the ramp on (kappa = 0), as in
Shi et al.; (2) boxes are not cut to [0, 1].
"""

from __future__ import annotations

import torch

from citrus_tool.choices.recipe import Recipe
from citrus_tool.network import Network
from citrus_tool.threat import Box
from citrus_tool.training.interval_margins import box_margins, robust_cross_entropy, uniform_box
from citrus_tool.training.method import Batch, LossParts


def ibp(
    network: Network, batch: Batch, eps: float, tau: float, recipe: Recipe, generator: torch.Generator
) -> LossParts:
    """Cross entropy of the interval margins on B(x, eps); tau, recipe and generator play no part."""
    boxes: dict[str, Box] = {}
    margins = box_margins(network, uniform_box(batch.x, eps), batch.labels, record=boxes)
    loss = robust_cross_entropy(margins).mean()
    return LossParts(loss=loss, parts={"loss": loss.detach()}, boxes=boxes)
