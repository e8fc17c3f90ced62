"""citrus-plus: CITRUS's boxes for the part that must be propagated, an attack's loss for the rest.

The loss of input i is alpha * (mean L_ibp over boxes B(x_i + v_j, tau), j != i) + (1 - alpha) * L(x_i + v_i), where v_j
is the PGD perturbation of x_j in the ball of attack_ratio * eps, cut to eps - tau where it moves a box. With `worst`
only the boxes with the largest concrete loss at their centre are propagated: one of them dominates the sum (paper,
Fig. 4). With `pool` every input has one further centre, x_i + delta, where delta is a universal perturbation that
earlier batches left behind: input i of a batch meets number i modulo `pool`, and the batch then moves it on by one step
of UAT's (uat.py).

The mixture is that of MTL-IBP (De Palma et al. 2023, section 4.2): a certifier that branches proves more than interval
bounds do, so that little weight on them is enough.

Differs from CITRUS in: (1) the mixture and its attack; (2) the selection of boxes; (3) the mean over them; (4) the
pool.
"""

from __future__ import annotations

import torch
from torch import Tensor

from citrus_tool.choices.recipe import Recipe
from citrus_tool.network import Network, walk
from citrus_tool.threat import Box
from citrus_tool.training.adversarial import attack
from citrus_tool.training.batch_norm_statistics import CLEAN
from citrus_tool.training.citrus import centres
from citrus_tool.training.interval_margins import box_margins, logit_margins, robust_cross_entropy, uniform_box
from citrus_tool.training.method import Batch, LossParts
from citrus_tool.training.uat import DELTA, ascend, carried


def citrus_plus(
    network: Network, batch: Batch, eps: float, tau: float, recipe: Recipe, generator: torch.Generator
) -> LossParts:
    """The mixture; `recipe` gives alpha, attack_ratio, worst, pool, group_size, same_input and the PGD steps."""
    v = attack(network, batch, recipe.attack_ratio * eps, recipe, generator)
    return citrus_plus_loss(network, batch, v, eps, tau, recipe)


def citrus_plus_loss(network: Network, batch: Batch, v: Tensor, eps: float, tau: float, recipe: Recipe) -> LossParts:
    """The same for given perturbations v (n, C, H, W); eps and tau in pixel space."""
    attacked = robust_cross_entropy(logit_margins(walk(network, CLEAN, batch.x + v), batch.labels)).mean()
    found = centres(batch.x, v.clamp(-(eps - tau), eps - tau), recipe)
    moved: dict[str, Tensor] = {}
    if recipe.pool > 0:
        delta, owner = carried(batch, recipe.pool, eps), torch.arange(len(batch.x), device=v.device) % recipe.pool
        further = batch.x + delta.clamp(-(eps - tau), eps - tau)[owner]
        found = torch.cat([found, further[:, None]], dim=1)
        moved = {DELTA: ascend(network, batch, delta, owner, eps, recipe)}
    chosen = worst_centres(network, found, batch.labels, recipe)
    boxes: dict[str, Box] = {}
    box = uniform_box(chosen.flatten(0, 1), tau)
    bound = robust_cross_entropy(box_margins(network, box, batch.labels, record=boxes)).mean()
    loss = recipe.alpha * bound + (1 - recipe.alpha) * attacked
    parts = {"loss": loss.detach(), "ibp": bound.detach(), "attacked": attacked.detach()}
    return LossParts(loss=loss, parts=parts, boxes=boxes, carried=moved)


def worst_centres(network: Network, found: Tensor, labels: Tensor, recipe: Recipe) -> Tensor:
    """The `worst` of each input's centres (n, m, C, H, W) by their concrete loss, or all of them."""
    n, m = found.shape[:2]
    if not 0 < recipe.worst < m:
        return found
    with torch.no_grad():
        logits = walk(network, CLEAN, found.flatten(0, 1))
        losses = robust_cross_entropy(logit_margins(logits, labels.repeat_interleave(m))).reshape(n, m)
    picked = losses.topk(recipe.worst, dim=1).indices
    return found[torch.arange(n, device=found.device)[:, None], picked]
